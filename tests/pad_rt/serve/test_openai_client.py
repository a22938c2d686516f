"""The official client, against a real server."""

from __future__ import annotations

import openai

from tests.support.live_server import LiveServer

MESSAGES = [{"role": "user", "content": "How do I boil an egg?"}]


def test_plain(server: LiveServer, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, temperature=0)
    alone = server.generator.generate(MESSAGES, config={"max_new_tokens": 24})
    assert reply.choices[0].message.content == alone.text
    print(reply)
