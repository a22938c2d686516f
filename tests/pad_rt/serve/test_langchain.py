"""LangChain's client of OpenAI's API, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from pad_rt import GenerationResult, Preference
from tests.support.live_server import LiveServer

MESSAGES = [SystemMessage("a"), HumanMessage("How do I boil an egg?")]
AS_SENT = [{"role": "system", "content": "a"}, {"role": "user", "content": "How do I boil an egg?"}]
ANNA = Preference(weights={"kind": 1.5, "brief": -0.75})


class Person(BaseModel):
    """A person."""

    age: int
    word: str = Field(max_length=12)


@pytest.fixture
def chat(server: LiveServer) -> Callable[..., ChatOpenAI]:
    def make(model: str = "tiny", **options: Any) -> ChatOpenAI:
        settings: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 24, "max_retries": 0, **options}
        return ChatOpenAI(base_url=server.url, api_key=SecretStr("none"), model=model, **settings)

    return make


def alone(server: LiveServer, preference: Any = None, **options: Any) -> GenerationResult:
    return server.generator.generate(AS_SENT, preference=preference, config={"max_new_tokens": 24, **options})


def test_invoke_and_stream(server: LiveServer, chat: Callable[..., ChatOpenAI]) -> None:
    expected = alone(server)
    reply = chat().invoke(MESSAGES)
    assert reply.content == expected.text
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] == 24
    chunks = list(chat(stream_usage=True).stream(MESSAGES))
    assert "".join(str(chunk.content) for chunk in chunks) == expected.text
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 24
    assert len(chunks) > 10


def test_options(server: LiveServer, chat: Callable[..., ChatOpenAI]) -> None:
    sampled = chat(temperature=0.9, seed=4, top_p=0.8, presence_penalty=1.0, frequency_penalty=0.5)
    settings = {"temperature": 0.9, "seed": 4, "top_p": 0.8, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    assert sampled.invoke(MESSAGES).content == alone(server, **settings).text != alone(server).text
    whole = alone(server).text
    stop = whole[len(whole) // 2 :][:3]
    assert chat().invoke(MESSAGES, stop=[stop]).content == whole[: whole.index(stop)]
    told = chat(logprobs=True, top_logprobs=2).invoke(MESSAGES).response_metadata["logprobs"]["content"]
    expected = [each.logprob for each in alone(server, logprobs=2).logprobs]
    assert [each["logprob"] for each in told] == pytest.approx(expected)
    replies = chat(n=2, temperature=0.9, seed=4).generate([MESSAGES]).generations[0]
    assert [reply.text for reply in replies] == [alone(server, temperature=0.9, seed=4 + i).text for i in range(2)]


def test_guided_by_name_and_by_extra_body(server: LiveServer, chat: Callable[..., ChatOpenAI]) -> None:
    named = chat("tiny:anna").invoke(MESSAGES).content
    assert named == alone(server, ANNA, beta=1.25).text
    pad = {"weights": dict(ANNA.weights), "beta": 1.25}
    assert chat(extra_body={"pad": pad}).invoke(MESSAGES).content == named
    assert chat().invoke(MESSAGES).content != named
    streamed = chat(extra_body={"pad": pad}).stream(MESSAGES)
    assert "".join(str(chunk.content) for chunk in streamed) == named


def test_structured_output(chat: Callable[..., ChatOpenAI]) -> None:
    person = chat(max_completion_tokens=200).with_structured_output(Person, method="json_schema").invoke(MESSAGES)
    assert isinstance(person, Person)
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        chat().with_structured_output(Person, method="function_calling").invoke(MESSAGES)


def test_chains_batches_and_tasks(server: LiveServer, chat: Callable[..., ChatOpenAI]) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "a"), ("user", "{asked}")]) | chat() | StrOutputParser()
    questions = ["How do I boil an egg?", "the cook", "a"]
    texts = chain.batch([{"asked": each} for each in questions])
    assert texts[0] == alone(server).text
    assert len(set(texts)) == 3
    assert asyncio.run(chat().ainvoke(MESSAGES)).content == texts[0]


def test_what_the_assistant_said_goes_back(server: LiveServer, chat: Callable[..., ChatOpenAI]) -> None:
    """A reply that LangChain keeps is a message like any other."""
    said = chat().invoke(MESSAGES)
    again = chat().invoke([*MESSAGES, said, HumanMessage("a")]).content
    history = [*AS_SENT, {"role": "assistant", "content": said.content}, {"role": "user", "content": "a"}]
    assert again == server.generator.generate(history, config={"max_new_tokens": 24}).text
    assert again != chat().invoke([*MESSAGES, AIMessage("other"), HumanMessage("a")]).content


def test_errors(chat: Callable[..., ChatOpenAI]) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        chat("huge").invoke(MESSAGES)
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        chat(reasoning_effort="high").invoke(MESSAGES)
