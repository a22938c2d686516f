"""Logs of chats: which lines tell of a person's taste, and why the others do not."""

from __future__ import annotations

import json

from pad_rt.taste.chat_log import ChatLog
from pad_rt.taste.choice import Choice

ASKED = {"role": "user", "content": "How was your day?"}
CHAT = [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant", "content": "Fine."}]


def read(*rows: object) -> ChatLog:
    return ChatLog.read([row if isinstance(row, str) else json.dumps(row) for row in rows])


def test_each_kind_of_choice() -> None:
    preferred = {
        "input": {"messages": [ASKED]},
        "preferred_output": [{"role": "assistant", "content": "Good!"}],
        "non_preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": "Bad."}]}],
    }
    log = read(
        {"messages": CHAT, "rating": 1},
        {"messages": CHAT, "rating": "down"},
        {"messages": CHAT, "edited": "Fine, thanks."},
        "",
        {"messages": CHAT, "regenerated": ["No.", "Yes."], "rating": "thumbs_up"},
        preferred,
    )
    prompt = CHAT[:2]
    assert log.choices == [
        Choice("rated", prompt, "Fine.", None),
        Choice("rated", prompt, None, "Fine."),
        Choice("edited", prompt, "Fine, thanks.", "Fine."),
        Choice("regenerated", prompt, "Fine.", "No."),
        Choice("regenerated", prompt, "Fine.", "Yes."),
        Choice("rated", prompt, "Fine.", None),
        Choice("preferred", [ASKED], "Good!", "Bad."),
    ]
    assert log.kinds == {"rated": 3, "edited": 1, "regenerated": 2, "preferred": 1}
    assert not log.skipped


def test_what_is_skipped_has_a_reason_and_a_first_line() -> None:
    log = read(
        {"messages": CHAT, "rating": 1},
        "no JSON",
        "[1]",
        {"messages": []},
        {"messages": CHAT},
        {"messages": CHAT[:2], "rating": 1},
        {"messages": CHAT, "rating": 3},
        {"messages": CHAT, "edited": "Fine."},
        {"messages": CHAT, "edited": "  "},
        {"messages": [1, 2], "rating": 1},
        {"messages": [ASKED, {"role": "assistant", "content": None}], "rating": 1},
        {"messages": CHAT, "regenerated": "No."},
        {"input": 1, "preferred_output": [], "non_preferred_output": []},
        "no JSON again",
    )
    assert len(log.choices) == 1
    assert dict(log.skipped) == {
        "no JSON object": 3,
        "no messages": 2,
        "no rating, edit or regenerated reply": 1,
        "no reply of the assistant at the end": 1,
        "a rating that is neither 1 nor -1": 1,
        "replies that are alike": 1,
        "edited without text": 1,
        "messages that are not OpenAI's": 1,
        "a reply without text": 1,
        "regenerated that is no list": 1,
    }
    assert log.first["no JSON object"] == 2
    assert log.first["no messages"] == 4
