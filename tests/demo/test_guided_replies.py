"""The replies of a further round: who they are made for, and that the ranking takes them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from demo.training.guided_replies import draw_wishes, main
from pad_train.pairs.reply_file import read_answers
from tests.support import tiny_bundles, tiny_models

FEATURES = ["kind", "brief", "odd"]
PROMPTS = ["never asked", "How do I boil an egg?", "the cook", "too late"]


def test_wishes_are_for_one_feature_and_for_two_in_turn() -> None:
    drawn = [draw_wishes(f"question {number}", FEATURES, 3) for number in range(300)]
    assert drawn == [draw_wishes(f"question {number}", FEATURES, 3) for number in range(300)]
    assert {tuple(map(len, wishes)) for wishes in drawn} == {(1, 2, 1)}
    alone = Counter(name for wishes in drawn for name in wishes[0])
    assert set(alone) == set(FEATURES) and max(alone.values()) < 1.5 * min(alone.values())  # noqa: PT018
    for wish in (wishes[1] for wishes in drawn):
        assert math.isclose(math.hypot(*wish.values()), 1, abs_tol=2e-3)
        assert min(map(abs, wish.values())) > 0.38
    assert {math.copysign(1, list(wishes[1].values())[1]) for wishes in drawn} == {1, -1}


def test_a_round_from_a_bundle_to_ranked_replies(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_models.make_base(base, "llama", seed=1)
    tiny_models.make_adapter(tmp_path / "many", base, seed=44, rank=5)
    tiny_models.make_head(tmp_path / "many", 84, d=3, seed=46)
    settings = {"name": "many", "features": FEATURES, "default_weights": [1.0, 0.0, 0.0], "prompt_template": "{x}"}
    (tmp_path / "many" / "pad_persrm.json").write_text(json.dumps(settings))
    bundle = tiny_bundles.export(tmp_path / "bundle", base, [tmp_path / "many"])
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = [str(bundle), "--prompts", str(tmp_path / "prompts.txt"), "--skip", "1", "--limit", "2", "--tokens", "6"]
    main([*command, "-o", str(tmp_path / "replies.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert Counter(row["prompt"] for row in rows) == {PROMPTS[1]: 17, PROMPTS[2]: 17}  # 2 wishes, 2 signs, 4 replies; 1
    people = Counter(json.dumps(row["weights"]) for row in rows if row["prompt"] == PROMPTS[1] and "weights" in row)
    assert sorted(people.values()) == [4, 4, 4, 4]
    wishes = draw_wishes(PROMPTS[1], FEATURES, 2)
    opposite = [{name: -weight for name, weight in wish.items()} for wish in wishes]
    assert set(people) == {json.dumps(wish) for wish in (*wishes, *opposite)}
    assert any(not row.get("finished", True) for row in rows)
    answers, lines = read_answers([str(tmp_path / "replies.jsonl")])
    assert [len(answer.replies) for answer in answers] == [17, 17]
    assert "34" in lines[0]
