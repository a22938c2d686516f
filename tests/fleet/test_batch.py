"""`pad batch --ray`, and replies in Ray Data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from pad_rt.batch.answerer import BatchOptions
from pad_rt.batch.cluster import Cluster
from pad_rt.batch.lines import read_ids, read_lines
from pad_rt.batch.predictor import PadPredictor
from pad_rt.batch.progress import Progress
from pad_rt.batch.results import Results
from pad_rt.batch.run import run_batch
from pad_runtime.errors import DeviceError
from tests.fleet.conftest import CHEERFUL, Bundles
from tests.fleet.streams import wait_for
from tests.support.error_checks import error_line, refused

PAD = [sys.executable, "-c", "import sys; from pad_rt.cli.main import main; sys.exit(main())"]
NUM_LINES = 200


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Requests of every kind: plain, guided, sampled, several choices, and two that cannot be answered."""
    file = tmp_path / "in.jsonl"
    written = []
    for number in range(NUM_LINES):
        body: dict[str, Any] = {
            "model": "sunny",
            "messages": [{"role": "user", "content": f"egg {number}"}],
            "max_tokens": 2 + number % 9,
            "temperature": number % 2,
            "seed": number,
            "n": 1 + (number % 7 == 0),
        }
        if number % 3:
            body["pad"] = {"weights": {"cheerful": 1.0 if number % 3 == 1 else -1.0}}
        if number == 50:
            body["model"] = "rainy"
        written.append({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    texts = [json.dumps(each) for each in written]
    texts[70] = "{torn"
    file.write_text("\n".join(texts))
    return file


def read(output: Path) -> dict[str, Any]:
    """What each line got, without what differs from run to run."""
    read = {}
    for line in map(json.loads, output.read_text().splitlines()):
        body = {} if line["response"] is None else line["response"]["body"]
        usage = {name: body.get("usage", {}).get(name) for name in ("prompt_tokens", "completion_tokens")}
        read[line["id"]] = (line["custom_id"], line["error"], body.get("error"), body.get("choices"), usage)
    return read


def test_a_cluster_answers_as_one_process_does(cluster: str, bundles: Bundles, lines: Path, tmp_path: Path) -> None:
    command = [*PAD, "batch", str(bundles.folders["sunny"]), str(lines)]
    on_ray = ["--ray", "--replicas", "2", "--cpus", "0.3"]
    outputs = {"alone": tmp_path / "alone.jsonl", "ray": tmp_path / "ray.jsonl"}
    for name, options in (("alone", ["--threads", "1"]), ("ray", on_ray)):
        environment = {**os.environ, "RAY_ADDRESS": cluster}
        ended = subprocess.run(
            [*command, "-o", str(outputs[name]), *options], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.endswith("tokens/s\n")
    alone, on_cluster = read(outputs["alone"]), read(outputs["ray"])
    assert len(alone) == NUM_LINES
    assert on_cluster == alone
    choices = [each[3] for each in alone.values() if each[3]]
    assert len(choices) == NUM_LINES - 2
    assert len({json.dumps(each) for each in choices}) > NUM_LINES / 2, "the replies differ"


def test_lines_of_a_replica_that_dies_are_answered_again(
    cluster: str, bundles: Bundles, lines: Path, tmp_path: Path
) -> None:
    on_ray = Cluster(BatchOptions(bundle=bundles.folders["sunny"]), replicas=2, cpus=0.3, gpus=0)
    results = Results(tmp_path / "out.jsonl", read_ids(lines))

    def kill() -> None:
        wait_for("some lines are done", lambda: len(results.done) > 10)
        os.kill(ray.get(on_ray._replicas[0].__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        run_batch(read_lines(lines), results, on_ray, Progress(NUM_LINES, 0, is_quiet=True))
    finally:
        results.close()
    killing.join()
    assert len(read(tmp_path / "out.jsonl")) == NUM_LINES


def test_what_no_replica_can_do_is_one_line(cluster: str, bundles: Bundles, lines: Path, tmp_path: Path) -> None:
    command = [*PAD, "batch", str(bundles.folders["sunny"]), str(lines), "-o", str(tmp_path / "out.jsonl"), "--ray"]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    for options, words in (
        (["--cpus", "64"], "0 GPUs free; expected 64 and 0 for a replica"),
        (["--cpus", "0.3", "--replicas", "1", "--device", "cuda"], "device 'cuda' is not available"),
    ):
        ended = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 2, ended.stderr
        assert words in error_line(ended.stderr, "pad")
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_line_that_kills_every_replica_ends_the_run(cluster: str, bundles: Bundles) -> None:
    on_ray = Cluster(BatchOptions(bundle=bundles.folders["sunny"]), replicas=1, cpus=0.3, gpus=0)
    try:
        deadly: Any = _Deadly()
        with refused(DeviceError, given="a replica died 4 times over line 7", hint="run the command again"):
            on_ray.answer(deadly)
    finally:
        on_ray.close()


class _Deadly:
    """A line that ends the process which reads it."""

    number = 7

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_rows_of_a_data_set_get_their_replies(cluster: str, bundles: Bundles) -> None:
    rows = [
        {"prompt": f"egg {number}", "pad": {"weights": {"cheerful": weight}, "beta": 1.5}}
        for number, weight in enumerate([1.0, -1.0, 0.5, 0.0])
    ]
    data = ray.data.from_items(rows).map_batches(
        PadPredictor,
        fn_constructor_kwargs={"bundle": str(bundles.folders["cloudy"]), "config": {"max_new_tokens": 12}},
        batch_size=4,
        concurrency=1,
        num_cpus=0.3,
    )
    replies = {row["prompt"]: row for row in data.take_all()}
    for row in rows:
        expected = bundles.reply(
            "cloudy", row["prompt"], row["pad"]["weights"]["cheerful"], max_new_tokens=12, beta=1.5
        )
        got = replies[row["prompt"]]
        assert (got["reply"], got["finish_reason"], got["completion_tokens"]) == (expected, "length", 12)
    assert len({row["reply"] for row in replies.values()}) == 4


def test_rows_may_have_fields_that_others_have_not(bundles: Bundles) -> None:
    import numpy as np

    predictor = PadPredictor(bundles.folders["sunny"], pad=CHEERFUL, config={"max_new_tokens": 12})
    prompts = np.array(["egg", [{"role": "user", "content": "egg"}], "egg"], dtype=object)
    pads = np.array([None, {"weights": None, "beta": 0.0}, {"weights": {"cheerful": -1.0, "sad": None}}], dtype=object)
    batch = predictor({"prompt": prompts, "pad": pads, "kept": np.arange(3)})
    plain, guided, other = (bundles.reply("sunny", "egg", weight, max_new_tokens=12) for weight in (None, 1.0, -1.0))
    assert list(batch["reply"]) == [guided, plain, other]
    assert list(batch["kept"]) == [0, 1, 2]
