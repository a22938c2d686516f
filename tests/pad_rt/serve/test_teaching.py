"""People whom a server learns from: each endpoint under /v1/people, the field "user", and the database."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pad_rt import Generator, Taste
from pad_rt.serve.taste_store import TasteStore
from pad_rt.taste.features import persrms_digest
from pad_rt.taste.reply_pool import ReplyPool
from pad_rt.taste.taste import MAX_ANSWERS
from pad_runtime.errors import OptionError
from tests.support import tiny_bundles
from tests.support.error_checks import refused
from tests.support.guided_models import Models
from tests.support.live_server import Answer, LiveServer, serve

MESSAGES = [{"role": "user", "content": "How do I boil an egg?"}]
BETTER, WORSE = "a kind egg", "the cook"
WANTED = {"kind": 1.0, "brief": -1.0}


@pytest.fixture(autouse=True)
def ask_whatever_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny PersRM's replies hardly differ."""
    monkeypatch.setattr("pad_rt.taste.taste.Taste.ask.__kwdefaults__", {"least_bits": 0.0, "skip": ()})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "people.db"


@pytest.fixture
def server(served_bundle: Path, place: Path) -> Iterator[LiveServer]:
    with serve(tiny_bundles.load(served_bundle), learn=str(place)) as running:
        yield running


def teach(server: LiveServer, word: str, *, person: str = "anna", **body: Any) -> Answer:
    if word not in ("ask", "answer"):
        body = {"messages": MESSAGES, **body}
    return server.post(f"/v1/people/{person}/{word}", {"model": "tiny", **body})


def prefer(server: LiveServer, better: str = BETTER, worse: str = WORSE, **more: Any) -> Answer:
    return teach(server, "prefer", better=better, worse=worse, **more)


def show(server: LiveServer, person: str = "anna") -> Answer:
    return server.get(f"/v1/people/{person}?model=tiny")


def reply(server: LiveServer, **fields: Any) -> str:
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def believed(taste: Taste) -> dict[str, Any]:
    """To the four digits that are told."""
    return {
        name: {key: pytest.approx(value, abs=1e-4) for key, value in asdict(estimate).items()}
        for name, estimate in taste.uncertainty().items()
    }


# -- teaching ---------------------------------------------------------------------------------------------------------


def test_each_kind_of_choice_is_what_it_is_in_python(server: LiveServer) -> None:
    taste = Taste(server.generator)
    taste.prefer(MESSAGES, BETTER, WORSE)
    told = prefer(server).json()
    assert told == {
        "object": "pad.person",
        "name": "anna",
        "model": "tiny",
        "answers": 1,
        "weights": believed(taste),
        "agreement": None,
        "learned": True,
    }
    taste.prefer(MESSAGES, BETTER, WORSE, ended=False)
    assert prefer(server, ended=False).json()["weights"] == believed(taste)
    taste.edit(MESSAGES, before=WORSE, after=BETTER)
    assert teach(server, "edit", before=WORSE, after=BETTER).json()["weights"] == believed(taste)
    taste.rate(MESSAGES, BETTER, -1)
    told = teach(server, "rate", reply=BETTER, rating=-1).json()
    assert told["weights"] == believed(taste)
    assert told["answers"] == 4
    agreement = taste.agreement()
    assert agreement is not None
    assert told["agreement"] == {"right": agreement.right, "expected": pytest.approx(agreement.expected, abs=1e-4)}
    assert {**show(server).json(), "learned": True} == told


def test_a_prompt_that_is_a_text(server: LiveServer) -> None:
    taste = Taste(server.generator)
    taste.prefer("the cook", BETTER, WORSE)
    told = server.post(
        "/v1/people/anna/prefer", {"model": "tiny", "prompt": "the cook", "better": BETTER, "worse": WORSE}
    )
    assert told.json()["weights"] == believed(taste)


def test_what_tells_nothing_is_not_kept(server: LiveServer) -> None:
    told = prefer(server, WORSE, WORSE).json()
    assert (told["learned"], told["answers"]) == (False, 0)
    assert show(server).status == 404


def test_a_question_and_its_answer(server: LiveServer) -> None:
    asked = teach(server, "ask").json()
    question = asked["question"]
    assert asked == {"object": "pad.question", "model": "tiny", "name": "anna", "question": question}
    assert set(question) == {"id", "messages", "a", "b", "cut", "bits"}
    prompt = question["messages"][0]["content"]
    taste = Taste(server.generator)
    expected = taste.ask(ReplyPool.write(server.generator, [prompt]))
    assert expected is not None
    assert (question["a"], question["b"]) == (expected.a, expected.b)
    taste.answer(expected, "b")
    told = teach(server, "answer", question=question["id"], answer="b").json()
    assert told["weights"] == believed(taste)
    after = teach(server, "ask").json()["question"]
    assert after["messages"] != question["messages"], "the next question is about another prompt"


def test_a_question_that_is_skipped_does_not_come_again(server: LiveServer) -> None:
    skip: list[str] = []
    for _ in range(5):
        question = teach(server, "ask", skip=skip).json()["question"]
        assert question["id"] not in skip
        skip.append(question["id"])
    assert show(server).status == 404, "a question alone makes nobody known"


def test_no_question_is_left(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_rt.taste.taste.Taste.ask.__kwdefaults__", {"least_bits": 2.0, "skip": ()})
    assert teach(server, "ask").json()["question"] is None


# -- the field "user" -------------------------------------------------------------------------------------------------


def make_known(place: Path, generator: Generator, person: str = "anna", number: int = 12) -> Taste:
    """Someone of strong wishes."""
    difference = tuple(400.0 * WANTED.get(name, 0.0) for name in Taste(generator).features)
    store = TasteStore(str(place))
    for _ in range(number):
        store.add(person, persrms_digest(generator.manifest), difference)
    store.close()
    return Taste(generator, answers=[difference] * number)


def test_user_finds_the_person(server: LiveServer, place: Path) -> None:
    plain = reply(server)
    assert reply(server, user="anna") == plain
    taste = make_known(place, server.generator)
    weights = dict(taste.preference().weights)
    guided = reply(server, pad={"weights": weights})
    assert guided != plain
    assert reply(server, user="anna") == guided
    assert reply(server, user="ben") == plain
    assert reply(server, user="no name: with spaces") == plain
    assert reply(server, user="anna", pad={"weights": {}}) == plain, "a body's own wish goes over the person's"
    assert reply(server, user="anna", pad={"beta": 0.5}) == reply(server, pad={"weights": weights, "beta": 0.5})
    assert prefer(server).json()["answers"] == 13
    taste.prefer(MESSAGES, BETTER, WORSE)
    assert reply(server, user="anna") == reply(server, pad={"weights": dict(taste.preference().weights)})


def test_a_person_is_known_to_a_server_that_starts_later(served_bundle: Path, place: Path) -> None:
    with serve(tiny_bundles.load(served_bundle), learn=str(place)) as server:
        told = prefer(server).json()
    with serve(tiny_bundles.load(served_bundle), learn=f"sqlite:///{place}") as server:
        assert show(server).json()["weights"] == told["weights"]


def test_servers_that_share_a_database_lose_no_answer(server: LiveServer, served_bundle: Path, place: Path) -> None:
    with serve(tiny_bundles.load(served_bundle), learn=str(place)) as other:
        threads = [threading.Thread(target=prefer, args=(one,)) for one in (server, other) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert show(server).json()["answers"] == show(other).json()["answers"] == 8


# -- forgetting -------------------------------------------------------------------------------------------------------


def test_deleting_a_person_leaves_nothing(server: LiveServer, place: Path) -> None:
    make_known(place, server.generator, "annabella")
    prefer(server, person="ben")
    assert b"annabella" in place.read_bytes()
    plain = reply(server)
    assert reply(server, user="annabella") != plain
    gone = server.request("DELETE", "/v1/people/annabella", None, {}).json()
    assert gone == {"object": "pad.person.deleted", "name": "annabella", "deleted": True, "answers": 12}
    left = b"".join(path.read_bytes() for path in place.parent.iterdir())
    assert b"annabella" not in left
    assert b"400.0" not in left
    assert show(server, "annabella").status == 404
    assert reply(server, user="annabella") == plain
    assert show(server, "ben").status == 200
    assert server.request("DELETE", "/v1/people/annabella", None, {}).json()["deleted"] is False


def test_no_text_is_kept(server: LiveServer, place: Path) -> None:
    prefer(server)
    teach(server, "rate", reply=BETTER, rating=1)
    teach(server, "answer", question=teach(server, "ask").json()["question"]["id"], answer="a")
    (kept,) = (path.read_bytes() for path in place.parent.iterdir())
    assert not [word for word in (b"egg", b"cook", b"boil") if word in kept]


def test_the_last_thousand_answers_are_kept(tmp_path: Path) -> None:
    store = TasteStore(str(tmp_path / "people.db"))
    for number in range(MAX_ANSWERS + 3):
        store.add("anna", "digest", [float(number)])
    store.add("ben", "digest", [0.5])
    kept = store.read("anna", "digest")
    assert kept is not None
    assert kept.differences == tuple((float(number),) for number in range(3, MAX_ANSWERS + 3))
    assert kept.last == store.last("anna", "digest")
    assert store.read("anna", "another") is None
    store.close()


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "fields", "param"),
    [
        ("prefer", {"better": BETTER}, "worse"),
        ("prefer", {"better": " ", "worse": WORSE}, "better"),
        ("prefer", {"better": BETTER, "worse": WORSE, "ended": "no"}, "ended"),
        ("prefer", {"better": BETTER, "worse": WORSE, "prompt": "the cook"}, "messages"),
        ("prefer", {"better": BETTER, "worse": WORSE, "messages": None}, "messages"),
        ("prefer", {"better": BETTER, "worse": WORSE, "messages": []}, "messages"),
        ("prefer", {"better": BETTER, "worse": WORSE, "weight": 2}, "weight"),
        ("prefer", {"better": BETTER, "worse": WORSE, "model": None}, "model"),
        ("rate", {"reply": BETTER, "rating": 0}, "rating"),
        ("rate", {"reply": BETTER, "rating": True}, "rating"),
        ("edit", {"before": WORSE}, "after"),
        ("ask", {"skip": "1"}, "skip"),
        ("ask", {"skip": ["1"] * 1001}, "skip"),
        ("answer", {"question": "0-1", "answer": "c"}, "answer"),
        ("answer", {"answer": "a"}, "question"),
    ],
)
def test_a_wrong_field_is_named(server: LiveServer, word: str, fields: dict[str, Any], param: str) -> None:
    answer = teach(server, word, **fields)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param), answer.body
    assert show(server).status == 404


def test_other_refusals(server: LiveServer, served_bundle: Path) -> None:
    unknown = teach(server, "answer", question="0-0123456789abcdef", answer="a")
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "question_not_found")
    for key in ("", "x", "99-1", "9" * 30 + "-1", "٣-1"):
        assert teach(server, "answer", question=key, answer="a").status == 404, key
    assert teach(server, "ask", model="other").json()["error"]["code"] == "model_not_found"
    assert prefer(server, person="a%20b").json()["error"]["param"] == "name"
    assert server.get("/v1/people/anna").json()["error"]["param"] == "model"
    assert server.get("/v1/people/anna/prefer").status == 405
    plain = server.request("POST", "/v1/people/anna/ask", b"{}", {"content-type": "text/plain"})
    assert plain.status == 415
    with serve(tiny_bundles.load(served_bundle)) as other:
        assert prefer(other).json()["error"]["code"] == "not_learning"
        assert other.request("DELETE", "/v1/people/anna", None, {}).json()["error"]["code"] == "not_learning"
        assert reply(other, user="anna") == reply(server)


def test_a_model_without_features(models: Models, place: Path) -> None:
    bundle = tiny_bundles.export(place.parent / "contrast", models.folder / "base", [])
    with serve(tiny_bundles.load(bundle), learn=str(place)) as server:
        assert prefer(server).json()["error"]["param"] == "model"


def test_a_database_that_fails(server: LiveServer, place: Path) -> None:
    with sqlite3.connect(place) as connection:
        connection.execute("DROP TABLE pad_answers")
    for answer in (prefer(server), show(server), server.request("DELETE", "/v1/people/anna", None, {})):
        assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    assert server.post("/v1/chat/completions", {**body, "user": "anna"}).status == 503
    assert server.post("/v1/chat/completions", body).status == 200


@pytest.mark.parametrize("place", ["no-folder/people.db", "nothing://here/people", "mongodb://", "://"])
def test_a_place_that_is_none(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(OptionError, given="--learn", expected="a URL such as"):
        TasteStore(place)


def test_a_password_is_not_told() -> None:
    with pytest.raises(OptionError) as caught:
        TasteStore("postgresql+nodriver://anna:sesame@127.0.0.1:1/people")
    assert "sesame" not in str(caught.value)


def test_lessons_wait_for_each_other_and_not_too_many(
    served_bundle: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = Taste.prefer

    def slow(*arguments: Any, **options: Any) -> bool:
        begun.set()
        assert go_on.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr("pad_rt.taste.taste.Taste.prefer", slow)
    with serve(tiny_bundles.load(served_bundle), learn=str(place), max_waiting=1) as server:
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(prefer(server))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        threads[0].join(0.0)
        while not answers:
            assert begun.is_set()
        assert [answer.status for answer in answers] == [429]
        assert reply(server)  # replies do not wait for lessons
        go_on.set()
        for thread in threads:
            thread.join()
        assert sorted(answer.status for answer in answers) == [200, 200, 429]
