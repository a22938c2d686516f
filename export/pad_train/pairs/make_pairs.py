"""On-policy preference pairs: the base's own replies, usual ones and with more or less of a feature, ranked.

The reply with more is preferred to the usual one, and the usual one to the reply with less. A pair of more and less
would teach what tells the extremes apart, and little about what makes a reply better than usual.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pad_export.output.disk import check_new, disk_errors
from pad_export.output.lock import claimed
from pad_export.output.stages import Stages
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.errors import OptionError
from pad_train.pairs.feature import Feature, PairSampling, Style, style_of
from pad_train.pairs.own_layout import pair_to_record
from pad_train.pairs.pair_choice import Answers, MadeReply, as_pair, choose_pairs, why_no_pair, why_unsound
from pad_train.pairs.sampler import Draw, sample_replies
from pad_train.pairs.scorer import Critic
from pad_train.train.backbone import Backbone


@dataclass(frozen=True)
class Task:
    """One feature and a few prompts, for which pairs are sampled together."""

    feature: Feature
    prompts: tuple[str, ...]

    @property
    def key(self) -> str:
        """Identifies the task and gives its seed, so that the order of tasks does not matter."""
        return hashlib.sha256(json.dumps([self.feature.name, *self.prompts]).encode()).hexdigest()[:16]


def plan_tasks(
    prompts: Sequence[str], features: Iterable[Feature], *, batch: int, per_prompt: int | None = None
) -> list[Task]:
    """Tasks, ordered by group of prompts and then by feature: an unfinished run has pairs of every feature.

    Args:
        per_prompt: how many of the features each group of prompts has, in turn; all if None.
    """
    sampled = [feature for feature in features if feature.sampling is not None]
    some = len(sampled) if per_prompt is None else min(per_prompt, len(sampled))
    groups = [tuple(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
    return [
        Task(sampled[(number * some + turn) % len(sampled)], group)
        for number, group in enumerate(groups)
        for turn in range(some)
    ]


def make_pairs(
    backbone: Backbone,
    tasks: Sequence[Task],
    critics: Mapping[str, Critic],
    output: Path,
    *,
    settings: dict[str, Any],
    seed: int,
    stages: Stages,
) -> Counter[str]:
    """Sample every task's pairs and write them to `output`, one JSON object a line.

    Finished tasks are kept in `output` + ".partial". After an interruption the same call goes on from there, and gives
    the same file as a run without interruption.

    Returns:
        Number of pairs that were kept, by feature, and dropped, by reason.

    Raises:
        OptionError: the partial file was made with other settings, another process makes these pairs now, or a critic
            does not answer as it should.
        CheckpointError: the disk is full or fails.
    """
    partial = output.with_name(output.name + ".partial")
    stamp = {"settings": settings, "seed": seed, "features": [asdict(task.feature) for task in tasks[:64]]}
    with claimed(partial, output), disk_errors(output, hint="free some and repeat the command: it goes on from there"):
        done = _read_partial(partial, stamp)
        with stages.count("sampling", "batches") as progress:
            progress.begin(len(tasks), done=sum(task.key in done for task in tasks))
            for task in tasks:
                if task.key not in done:
                    rows = list(_sample_task(backbone, task, critics[task.feature.name], seed))
                    _append(partial, {"task": task.key, "rows": rows})
                    done[task.key] = rows
                    progress()
        _write_rows(output, (row for task in tasks for row in done[task.key] if "dropped" not in row))
        partial.unlink()
    return Counter(row.get("dropped", task.feature.name) for task in tasks for row in done[task.key])


def rank_replies(
    answers: Iterable[Answers], features: Sequence[Feature], critics: Mapping[str, Critic], output: Path
) -> Counter[str]:
    """Write the pairs that `choose_pairs` makes of given replies to `output`.

    Returns:
        As `make_pairs`.

    Raises:
        OptionError, CheckpointError: as there.
    """
    counts: Counter[str] = Counter()
    rows = []
    for choice in choose_pairs(answers, features, critics):
        if isinstance(choice, str):
            counts[choice] += 1
        else:
            counts.update(choice.weights.keys())
            rows.append(pair_to_record(choice))
    lock = output.with_name(output.name + ".partial")
    with claimed(lock, output), disk_errors(output, hint="free some and repeat the command"):
        try:
            _write_rows(output, rows)
        finally:
            lock.unlink()
    return counts


def _write_rows(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    check_new(output)  # another process may have made the file meanwhile
    write_whole(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _sample_task(backbone: Backbone, task: Task, critic: Critic, seed: int) -> Iterable[dict[str, Any]]:
    sampling = task.feature.sampling
    assert sampling is not None
    half = len(task.prompts)
    prompts = [*task.prompts, *task.prompts]
    signs = [1.0] * half + [-1.0] * half
    draws = [_draw(backbone, sampling, prompt, sign) for prompt, sign in zip(prompts, signs, strict=True)]

    def score(owners: list[int], replies: list[str]) -> list[float]:
        values = critic.scorer([prompts[owner] for owner in owners], replies)
        return [signs[owner] * value for owner, value in zip(owners, values, strict=True)]

    lengths = {"block": sampling.block, "max_new_tokens": sampling.max_new_tokens}
    generator = torch.Generator().manual_seed(int(task.key, 16) ^ seed)
    styled = sample_replies(backbone, draws, score, samples=sampling.samples, generator=generator, **lengths)
    plain = [Draw(draw.prompts[:1], (1.0,)) for draw in draws[:half]]
    usual = sample_replies(backbone, plain, score, samples=1, generator=generator, **lengths)
    couples = []
    for prompt, more, same, less in zip(task.prompts, styled[:half], usual, styled[half:], strict=True):
        couples += [(prompt, more, same), (prompt, same, less)]
        if sampling.ends_early:
            couples.append((prompt, _beginning(same, sampling.min_words), same))
    asked_twice = [prompt for prompt, _, _ in couples] * 2
    texts = [more.text for _, more, _ in couples] + [less.text for _, _, less in couples]
    marks, vetoes = critic.scorer(asked_twice, texts), critic.veto(asked_twice, texts)
    unsound = [why_unsound(text, veto, sampling) for text, veto in zip(texts, vetoes, strict=True)]
    for index, (prompt, more, less) in enumerate(couples):
        other = len(couples) + index
        reason = why_no_pair((unsound[index], unsound[other]), marks[index] - marks[other], sampling.min_gap)
        asked = ({"role": "user", "content": prompt},)
        yield {"dropped": reason} if reason else pair_to_record(as_pair(asked, more, less, {task.feature.name: 1.0}))


def _draw(backbone: Backbone, sampling: PairSampling, prompt: str, sign: float) -> Draw:
    plain = tuple(_encode(backbone, prompt, Style()))
    if not sampling.styles:
        return Draw((plain,), (1.0,))
    more, less = (tuple(_encode(backbone, prompt, style)) for style in style_of(prompt, sampling.styles))
    return Draw((plain, more, less), (1.0, sign * sampling.contrast, -sign * sampling.contrast))


def _encode(backbone: Backbone, prompt: str, style: Style) -> list[int]:
    return backbone.encode_prompt(style.messages(prompt))


def _beginning(reply: MadeReply, min_words: int) -> MadeReply:
    """The reply's first sentences, as few as have `min_words` words, as a complete reply; else the whole reply."""
    for end in re.finditer(r"[.!?](?=\s)", reply.text):
        text = reply.text[: end.end()]
        if len(text.split()) >= min_words:
            return MadeReply(text)
    return reply


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _read_partial(path: Path, stamp: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Finished tasks of an interrupted run; a new file gets the settings as its first line."""
    header = json.dumps(stamp, sort_keys=True)
    # A line that was cut off may end inside a character.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    if len(lines) < 2:
        path.write_text(header + "\n", encoding="utf-8")
        return {}
    try:
        begun = json.loads(lines[0])
    except ValueError:
        raise OptionError(f"{path} is no file that an interrupted run left", hint="move it away") from None
    if begun != json.loads(header):
        raise OptionError(f"{path} was begun with other settings", hint="use those again, or remove it to begin anew")
    whole = [line for line in lines[1:-1] if line]
    if lines[-1]:  # the last line was cut off while it was written
        path.write_text("\n".join([lines[0], *whole]) + "\n", encoding="utf-8")
    return {entry["task"]: entry["rows"] for entry in map(json.loads, whole)}
