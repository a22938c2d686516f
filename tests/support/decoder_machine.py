"""A decoder under random use: whatever happens to a slot, it chooses what its sequence chooses alone.

What each slot must know is written down beside the decoder. After every event a sequence is read anew, at once, into a
decoder of its own, and goes on there beside the one that is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pad_runtime.cancellation import Cancellation
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.errors import CancelledError, OutOfMemoryError, PromptError
from pad_runtime.rows.row import Row
from pad_runtime.rows.sequence import Controls, Sampling, SequenceSpec
from tests.support.choice_oracle import Choice, choose, weigh
from tests.support.decoder_book import Alone, Book, LimitedMemory, Tally
from tests.support.decoder_worlds import MAX_LENGTH, World
from tests.support.torch_oracle import tolerance

Array = npt.NDArray[Any]
MAX_SLOTS = 5
BEHIND = ([0, 0], [0])  # tokens behind those whose caches are compared
MAX_ROOM = MAX_LENGTH - 3
CHECKED = 11  # one token in so many is also computed by torch
NUM_EVENTS, COMPARED = 24, 8  # events of a case; after so many the caches are compared
ROUNDED = 0.1  # of the largest value: what rounding of the inputs to 8 bits may change
SAMPLINGS = (
    Sampling(top_k=5),
    Sampling(top_k=40),
    Sampling(top_k=5, temperature=0.9, seed=7),
    Sampling(top_k=40, temperature=2.5, top_p=0.9, min_p=0.02, seed=8),
    Sampling(top_k=12, temperature=1.7, seed=9, offer_end=True),
    Sampling(top_k=12, offer_end=True),
)
CONTROLS = (
    Controls(),
    Controls(bias={3: 9.0, 40: -7.5, 41: 6.0}),
    Controls(repetition_penalty=1.6),
    Controls(presence_penalty=1.5, frequency_penalty=0.8, bias={7: 5.0}),
)


_which = st.integers(0, MAX_SLOTS - 1)
_picks = st.lists(_which, min_size=1, max_size=MAX_SLOTS, unique=True)
_lengths = st.lists(st.one_of(st.integers(0, 9), st.integers(10, 70)), min_size=3, max_size=3)
_people = st.integers(0, 6)
_samplings, _controls = st.sampled_from(SAMPLINGS), st.sampled_from(CONTROLS)
_other_people = st.sampled_from([None] * 5 + list(range(7)))
_other_samplings, _other_controls = st.sampled_from((None, None, *SAMPLINGS)), st.sampled_from((None, None, *CONTROLS))
_seeds = st.integers(0, 99)


@dataclass(frozen=True)
class Opening:
    """What a slot is opened with."""

    person: int
    sampling: Sampling
    controls: Controls
    room: int
    lengths: list[int]
    share: float | None
    seed: int


_openings = st.builds(
    Opening,
    person=_people,
    sampling=_samplings,
    controls=_controls,
    room=st.one_of(st.integers(4, 40), st.sampled_from([63, 64, 65, 100, 128, 300])),
    lengths=_lengths,
    share=st.sampled_from([None, None, 0.2]),
    seed=_seeds,
)


class DecoderMachine(RuleBasedStateMachine):
    """Slots of one decoder, and what they must know.

    Args:
        world: bundle and people.
        tally: counts.
    """

    def __init__(self, world: World, tally: Tally) -> None:
        super().__init__()
        self.world, self.tally = world, tally
        bundle = world.bundle
        self.memory = LimitedMemory(bundle.provider.memory)
        provider: Any = copy.copy(bundle.provider)
        provider.memory = self.memory
        self.decoder = Decoder(bundle.graph, bundle.manifest, bundle.files, provider)
        self.books: list[Book] = []
        self.last: list[Book] = []
        self.closed: list[Slot] = []
        self.num_events = self.num_tokens = 0
        self.vocab_size = world.bundle.manifest.vocab_size
        self.ends = world.bundle.manifest.eos_token_ids
        self.near = ROUNDED if world.rounds else tolerance()
        tally.cases += 1

    # -- events -------------------------------------------------------------------------------------------------------

    @initialize(first=_openings, second=_openings)
    def begin(self, first: Opening, second: Opening) -> None:
        self.open(first)
        self.open(second)

    @precondition(lambda self: len(self.books) < MAX_SLOTS)
    @rule(opening=_openings)
    def open(self, opening: Opening) -> None:
        """A further slot, with something read in each prompt, or nothing."""
        sequence = self.plan(opening.person).sequence(opening.sampling, opening.controls)
        slot = self.decoder.open(sequence, opening.room)
        book = Book(slot, sequence, opening.room, [[] for _ in range(sequence.num_prompts)])
        self.books.append(book)
        self.mask(book, opening.share, opening.seed)
        self.append(book, [max(length, 1) for length in opening.lengths] if opening.seed else [], opening.seed)

    @precondition(lambda self: self.books)
    @rule(which=_which, lengths=_lengths, seed=_seeds)
    def read(self, which: int, lengths: list[int], seed: int) -> None:
        """Some more of some prompts."""
        self.append(self.book(which), lengths, seed)

    @precondition(lambda self: self.books)
    @rule(picks=_picks, times=st.integers(1, 10), trace=st.sampled_from([False, False, False, True]))
    def step(self, picks: list[int], times: int, trace: bool) -> None:
        """Some of the slots together, a few times."""
        self.last = [book for book in self.picked(picks) if book.starts]
        self.advance(self.last, times, trace=trace)

    @precondition(lambda self: self.last)
    @rule(times=st.integers(1, 10))
    def step_again(self, times: int) -> None:
        """Those that were stepped before, as far as they are there."""
        self.last = [book for book in self.last if book in self.books and book.starts]
        self.advance(self.last, times)

    @precondition(lambda self: self.books)
    @rule(times=st.integers(1, 10))
    def step_all(self, times: int) -> None:
        """All slots that can be stepped; those that lack a prompt are given one."""
        for number, book in enumerate(self.books):
            if not all(book.prompts):
                self.append(book, [0 if prompt else 3 for prompt in book.prompts], number)
        self.last = [book for book in self.books if book.starts]
        self.advance(self.last, times)

    @precondition(lambda self: self.books)
    @rule(
        which=_which,
        cuts=st.lists(st.integers(0, 12), min_size=3, max_size=3),
        everywhere=st.booleans(),
        lengths=st.one_of(st.none(), _lengths),
        seed=_seeds,
    )
    def rewind(self, which: int, cuts: list[int], everywhere: bool, lengths: list[int] | None, seed: int) -> None:
        """The same number of tokens off all prompts, or others off each; other ones may take their place."""
        book = self.book(which)
        cuts = cuts[:1] * 3 if everywhere else cuts
        stay = {
            number: max(0, len(prompt) - cut)
            for number, (prompt, cut) in enumerate(zip(book.prompts, cuts, strict=False))
            if cut or everywhere
        }
        self.decoder.rewind(book.slot, stay)
        for number, length in stay.items():
            if number == 0:
                book.step = max(0, book.step - (len(book.prompts[0]) - length))
            del book.prompts[number][length:]
        book.happened()
        self.append(book, lengths or (), seed)

    @precondition(lambda self: self.books)
    @rule(
        which=_which,
        person=_other_people,
        sampling=_other_samplings,
        controls=_other_controls,
    )
    def fork(self, which: int, person: int | None, sampling: Sampling | None, controls: Controls | None) -> None:
        """A slot goes on twice: as it is, or for another person, or with another way to choose."""
        book = self.book(which)
        sequence = self.changed(book, person, sampling, controls)
        slot = self.decoder.fork(book.slot, None if sequence is book.sequence else sequence)
        self.tally.saw("fork with a cache" if any(slot.lease.cached) else "fork")
        other = Book(slot, sequence, book.room, self.carried(book, sequence), book.step, book.allowed)
        if len(self.books) == MAX_SLOTS:
            self.close((which + 1) % MAX_SLOTS, twice=False)
        self.books.append(other)

    @precondition(lambda self: self.books)
    @rule(
        which=_which,
        person=_other_people,
        sampling=_other_samplings,
        controls=_other_controls,
    )
    def adopt(self, which: int, person: int | None, sampling: Sampling | None, controls: Controls | None) -> None:
        """A slot goes on for another person, or with another way to choose; a reply begins."""
        book = self.book(which)
        sequence = self.changed(book, person, sampling, controls)
        self.decoder.adopt(book.slot, sequence)
        book.prompts, book.sequence, book.step = self.carried(book, sequence), sequence, 0
        book.happened()

    @precondition(lambda self: self.books)
    @rule(which=_which, room=st.sampled_from([0, 0, 1, 70]))
    def restore(self, which: int, room: int) -> None:
        """A slot is saved and closed, and goes on from what was saved; a reply begins."""
        book = self.book(which)
        saved = self.decoder.save(book.slot)
        self.tally.saw("saved with a cache" if any(saved.cached) else "saved")
        self.closed.append(book.slot)
        self.decoder.close(book.slot)
        book.room = max(*map(len, book.prompts), min(book.room + room, MAX_ROOM), 1)
        book.slot = self.decoder.restore(saved, book.sequence, book.room)
        self.decoder.allow(book.slot, book.allowed)
        book.step = 0
        book.happened()

    @precondition(lambda self: self.books)
    @rule(which=_which, share=st.sampled_from([None, 0.03, 0.2, 0.7]), seed=_seeds)
    def allow(self, which: int, share: float | None, seed: int) -> None:
        """Some of the tokens may be chosen, or all."""
        self.mask(self.book(which), share, seed)

    @precondition(lambda self: self.books)
    @rule(which=_which, more=st.sampled_from([None, None, -1, 0, 2, 90]))
    def make_room(self, which: int, more: int | None) -> None:
        """A slot is parked, or gets another room: never less than the tokens that are there."""
        book = self.book(which)
        if more is None:
            self.decoder.park(book.slot)
            assert not any(book.slot.lease.cached)
        else:
            least = max(1, *(len(ids) - 1 for ids in book.prompts))
            if more < 0 and least > 1:
                self.refused(lambda: self.decoder.resize(book.slot, least - 1))
            book.room = min(least + max(0, more), MAX_ROOM)
            self.decoder.resize(book.slot, book.room)
        book.happened()
        self.tally.saw("parked" if more is None else "resized")

    @precondition(lambda self: self.books)
    @rule(which=_which, twice=st.booleans())
    def close(self, which: int, twice: bool) -> None:
        book = self.book(which)
        self.books.remove(book)
        self.closed.append(book.slot)
        for _ in range(1 + twice):
            self.decoder.close(book.slot)

    # -- what is refused, or fails ------------------------------------------------------------------------------------

    @precondition(lambda self: self.books)
    @rule(
        trouble=st.sampled_from(["misuse", "cancel", "starve"]),
        picks=_picks,
        lengths=_lengths,
        seed=_seeds,
        spared=st.integers(0, 60),
    )
    def fail(self, trouble: str, picks: list[int], lengths: list[int], seed: int, spared: int) -> None:
        """What is refused changes nothing; what was not needed for long, or not wanted any more, neither."""
        book, books = self.book(picks[0]), [book for book in self.picked(picks) if book.starts]
        if trouble == "misuse":
            self.misuse(book, [book.slot for book in self.picked(picks)])
            return
        cancellation = Cancellation()
        if trouble == "cancel":
            cancellation.want()
        for attempt in (
            lambda: self.append(book, lengths, seed, cancellation=cancellation),
            lambda: self.advance(books, 1, cancellation=cancellation),
            lambda: self.decoder.close(self.decoder.fork(book.slot, self.plan(seed).sequence(SAMPLINGS[0]))),
        ):
            if trouble == "starve":
                self.memory.left = spared
            try:
                attempt()
            except (CancelledError, OutOfMemoryError) as error:
                self.tally.saw(type(error).__name__)
            finally:
                self.memory.left = None

    def misuse(self, book: Book, slots: list[Slot]) -> None:
        over = {
            number: [1] * max(1, book.room - len(prompt) + 1) if number == len(book.prompts) - 1 else [1]
            for number, prompt in enumerate(book.prompts)
        }
        self.refused(lambda: self.decoder.read(book.slot, over))
        beyond = dict.fromkeys(range(len(book.prompts)), 0)
        beyond[len(beyond) - 1] = len(book.prompts[-1]) + 1
        self.refused(lambda: self.decoder.rewind(book.slot, beyond))
        self.refused(lambda: self.decoder.step([*slots, slots[0]]))
        self.refused(lambda: self.decoder.step([]))
        self.refused(lambda: self.decoder.open(book.sequence, 0))
        if self.closed:
            self.refused(lambda: self.decoder.step([*slots, self.closed[-1]]))
        stuck = [each.slot for each in self.books if not each.starts]
        if stuck:
            self.refused(lambda: self.decoder.step([*(slot for slot in slots if slot not in stuck), stuck[0]]))

    # -- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def knows(self) -> None:
        """Every slot knows its own tokens."""
        for book in self.books:
            assert [list(book.slot.ids(number)) for number in range(len(book.prompts))] == book.prompts
            assert (book.slot.lengths, book.slot.step) == (tuple(map(len, book.prompts)), book.step)
            assert book.slot.sequence is book.sequence
        self.num_events += 1
        if self.num_events == NUM_EVENTS:
            self.step_all(2)
        if self.num_events % COMPARED == 0:
            for book in self.books:
                self.compare_caches(book)

    def compare_caches(self, book: Book) -> None:
        """What a slot has cached is what its prompts, read at once, come to."""
        cached = list(book.slot.lease.cached)
        if not any(cached):
            return
        decoder = self.world.host.decoder()
        slot = decoder.open(book.sequence, min(book.room + 3, MAX_LENGTH))
        decoder.read(slot, {number: book.prompts[number][:length] for number, length in enumerate(cached)})
        for more in BEHIND:  # several tokens that are pending are computed where there are further ones
            decoder.read(slot, {number: more for number, length in enumerate(cached) if length})
        for number, row in enumerate(book.sequence.rows):
            if cached[row.prompt] > 1:  # a single token is read with what follows
                self.tally.caches += 1
                for layer in range(self.world.bundle.manifest.trunks[row.trunk].num_layers):
                    pairs = zip(
                        self.decoder.cache(book.slot, number, layer), decoder.cache(slot, number, layer), strict=True
                    )
                    differences = [_difference(mine, theirs[:, : cached[row.prompt]]) for mine, theirs in pairs]
                    self.tally.difference = max(self.tally.difference, *differences)
                    assert max(differences) <= self.near, "what is cached is wrong"

    def expect(self, book: Book, token: int, trace: SequenceTrace | None) -> None:
        """A slot chose a token: its sequence alone chooses the same."""
        self.tally.tokens += 1
        self.num_tokens += 1
        book.alone = book.alone or Alone(self.world.host, book)
        alone = book.alone.next()
        if token != alone:
            again = Alone(self.world.host, book).trace()
            values = choose(again.candidates, again.scores, book.sequence.sampling, book.step).values
            behind = values[alone] - values.get(token, -np.inf)
            if self.world.rounds and book.sequence.sampling.temperature:  # noise goes by rank, and ties trade places
                behind = min(behind, _nearest(again, token), _nearest(again, alone))
            behind /= max(1.0, float(np.abs(again.scores).max()))
            assert behind <= self.near, f"{token} in the batch and {alone} alone, by {behind}"
            self.tally.near_ties += 1
            book.happened()
        if trace is not None and not self.world.rounds:
            again = Alone(self.world.host, book).trace()
            # By id: two candidates that are as good as tied may change places.
            order, other = np.argsort(trace.candidates), np.argsort(again.candidates)
            assert np.array_equal(trace.candidates[order], again.candidates[other]), "other candidates than alone"
            for mine, theirs in ((trace.row_logits, again.row_logits), (trace.scores, again.scores)):
                worst = _difference(mine[..., order], theirs[..., other])
                assert worst <= tolerance(), "what is weighed differs from what is weighed alone"
        if self.num_tokens % CHECKED == 0 and not self.world.rounds:
            self.tally.checked += 1
            choice = self.by_torch(book)
            assert token == choice.id or choice.margin < 10 * tolerance(), f"{token}, and {choice} by torch"

    def by_torch(self, book: Book) -> Choice:
        """The next token from torch's logits of the whole prompts."""
        sequence, models = book.sequence, self.world.models
        names = [info.name for info in self.world.bundle.manifest.persrms]

        def logits(number: int) -> Array:
            reading = sequence.readings[number]
            row: Row = sequence.rows[reading.row]
            model = models.base if row.persrm is None else models.persrms[names[row.persrm]]
            found = model.logits(book.prompts[row.prompt]).double().numpy()
            mixed: Array = np.asarray(reading.weights) @ found if reading.weights else found[0]
            return mixed

        split = len(book.prompts[0]) - book.step
        candidates, scores, margin = weigh(
            sequence,
            logits,
            prompt=book.prompts[0][:split],
            chosen=book.prompts[0][split:],
            allowed=book.allowed,
            ends=self.ends,
        )
        choice = choose(candidates, scores, sequence.sampling, book.step)
        return replace(choice, margin=min(choice.margin, margin))

    def teardown(self) -> None:
        self.books.clear()
        del self.decoder
        self.world.let_go()

    # -- how ----------------------------------------------------------------------------------------------------------

    def plan(self, person: int) -> Any:
        return self.world.plans[person % len(self.world.plans)]

    def book(self, which: int) -> Book:
        return self.books[which % len(self.books)]

    def picked(self, picks: Sequence[int]) -> list[Book]:
        return [self.books[number] for number in dict.fromkeys(pick % len(self.books) for pick in picks)]

    def changed(
        self, book: Book, person: int | None, sampling: Sampling | None, controls: Controls | None
    ) -> SequenceSpec:
        """The sequence of a book with something else; itself where nothing is."""
        if person is not None:
            plan = self.plan(person)
            return plan.sequence(sampling or book.sequence.sampling, controls or book.sequence.controls)
        if sampling is None and controls is None:
            return book.sequence
        return replace(
            book.sequence,
            sampling=sampling or book.sequence.sampling,
            controls=controls or book.sequence.controls,
        )

    def mask(self, book: Book, share: float | None, seed: int) -> None:
        book.allowed = given = None
        if share is not None:
            bits = np.random.default_rng(seed).random(self.vocab_size) < share
            bits[seed] = True
            given = np.packbits(bits, bitorder="little")
            book.allowed = given.copy()
        self.decoder.allow(book.slot, given)
        if given is not None:
            given[:] = 0x55  # the caller may use it again
        book.happened()

    def carried(self, book: Book, sequence: SequenceSpec) -> list[list[int]]:
        """What another sequence in the same place knows: prompts of the same numbers."""
        prompts = copy.deepcopy(book.prompts[: sequence.num_prompts])
        return prompts + [[] for _ in range(sequence.num_prompts - len(prompts))]

    def append(
        self, book: Book, lengths: Sequence[int], seed: int, *, cancellation: Cancellation | None = None
    ) -> None:
        new = {}
        for number, (prompt, length) in enumerate(zip(book.prompts, lengths, strict=False)):
            length = min(length, book.room - len(prompt))  # noqa: PLW2901 - what fits
            if length > 0:
                generator = np.random.default_rng([seed, number, len(prompt)])
                new[number] = generator.integers(0, self.vocab_size, length).tolist()
        if not new:
            return
        self.decoder.read(book.slot, new, cancellation)
        for number, ids in new.items():
            book.prompts[number] += ids
        book.step = 0
        book.happened()

    def advance(
        self,
        books: Sequence[Book],
        times: int,
        *,
        trace: bool = False,
        cancellation: Cancellation | None = None,
    ) -> None:
        for _ in range(times):
            if not books or not all(book.starts for book in books):
                return
            chosen = self.decoder.step([book.slot for book in books], trace=trace, cancellation=cancellation)
            traces = chosen.trace() if trace else [None] * len(books)
            for book, token, weighed in zip(books, list(chosen.ids), traces, strict=True):
                self.expect(book, token, weighed)
                book.take_in(token)

    def refused(self, what: Callable[[], object]) -> None:
        try:
            what()
        except PromptError:
            return
        raise AssertionError("it was not refused")


def _nearest(trace: SequenceTrace, token: int) -> float:
    """How far a candidate's score is from the next one's."""
    gaps = np.abs(trace.scores[trace.candidates != token] - trace.scores[trace.candidates == token])
    return float(np.min(gaps, initial=np.inf))


def _difference(one: Array, other: Array) -> float:
    """Relative to the largest number; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    if not one.size:
        return 0.0
    worst = float(np.abs(one - other).max())
    return worst / max(1.0, float(np.abs(other).max())) if np.isfinite(worst) else float("inf")
