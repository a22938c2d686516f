from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt.text.stream_decoder import StreamDecoder, TokenBytes, _byte_level_alphabet
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import BundleError, PromptError
from tests.support import tiny_tokenizers

MAKERS = [tiny_tokenizers.byte_level, tiny_tokenizers.llama2, tiny_tokenizers.gemma, tiny_tokenizers.metaspace]

Case = tuple[tokenizers.Tokenizer, Tokenizer]

texts = st.text(
    st.one_of(
        st.sampled_from(" the cook boils egg,\né\u0301東京北👩\u200d🍳ก\ufffd"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build(request.param, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=MAKERS[1:], ids=lambda make: make.__name__)
def byte_fallback(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build(request.param, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build(tiny_tokenizers.byte_level, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build(tiny_tokenizers.llama2, tmp_path_factory.mktemp("tokenizer"))


def build(make: Callable[[], tokenizers.Tokenizer], folder: Path) -> Case:
    backend = make()
    return backend, Tokenizer(tiny_tokenizers.save(backend, folder), bos_token="<s>", eos_token="</s>")


def find(backend: tokenizers.Tokenizer, token: str) -> int:
    token_id = backend.token_to_id(token)
    assert token_id is not None
    return token_id


def byte_ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return [find(backend, f"<0x{byte:02X}>") for byte in text.encode()]


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream_decoder()
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


def test_a_reply_that_goes_on_keeps_its_first_space(case: Case) -> None:
    """SentencePiece decoders drop it at the start of a text, and only there."""
    backend, tokenizer = case
    ids = tokenizer.encode("the egg", add_special_tokens=False)
    for cut in range(1, len(ids)):
        decoder = tokenizer.stream_decoder(has_begun=True)
        rest = "".join(map(decoder.push, ids[cut:])) + decoder.flush()
        assert tokenizer.decode(ids[:cut]) + rest == backend.decode(ids) == "the egg"


@settings(deadline=None)
@given(text=texts)
def test_pieces_of_an_encoded_text_are_its_decoding(case: Case, text: str) -> None:
    backend, tokenizer = case
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert "".join(stream(tokenizer, ids)) == backend.decode(ids) == tokenizer.decode(ids)


def test_decoding_each_id_alone_is_not_enough(case: Case) -> None:
    """Negative control: what the stream decoder is for."""
    backend, tokenizer = case
    ids = tokenizer.encode("boil 🫠 the egg", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == "boil 🫠 the egg" != "".join(backend.decode([i]) for i in ids)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 420), max_size=60))
def test_byte_level_pieces_equal_the_backend_for_any_ids(byte_level: Case, ids: list[int]) -> None:
    backend, tokenizer = byte_level
    assert "".join(stream(tokenizer, ids)) == backend.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == backend.decode(ids, skip_special_tokens=False)


@settings(deadline=None)
@given(data=st.data())
def test_byte_fallback_pieces_equal_the_backend_without_broken_bytes(byte_fallback: Case, data: st.DataObject) -> None:
    backend, tokenizer = byte_fallback
    ordinary = [[i] for i in range(tokenizer.vocab_size + 3) if "<0x" not in (backend.id_to_token(i) or "")]
    characters = [byte_ids(backend, character) for character in "é東👩\n a"]
    groups = data.draw(st.lists(st.sampled_from(ordinary + characters), max_size=40))
    ids = [token_id for group in groups for token_id in group]
    assert "".join(stream(tokenizer, ids)) == backend.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == backend.decode(ids, skip_special_tokens=False)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 420), max_size=60))
def test_pieces_equal_decode_for_any_ids(case: Case, ids: list[int]) -> None:
    _, tokenizer = case
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@settings(deadline=None)
@given(text=texts)
def test_no_piece_holds_a_partial_character(case: Case, text: str) -> None:
    _, tokenizer = case
    clean = text.replace("\ufffd", "")
    pieces = stream(tokenizer, tokenizer.encode(clean, add_special_tokens=False))
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces[-1] == ""


def test_a_character_is_shown_with_its_last_byte(llama2: Case) -> None:
    backend, tokenizer = llama2
    ids = byte_ids(backend, "👩é\n")
    assert stream(tokenizer, ids) == ["", "", "", "👩", "", "é", "\n", ""]


def test_a_cut_off_character_leaves_the_ones_before_it(llama2: Case) -> None:
    backend, tokenizer = llama2
    ids = byte_ids(backend, "é👩")[:-1]
    assert stream(tokenizer, ids) == ["", "é", "", "", "", "\ufffd"]
    # The backend loses the good character too, which a stream has already shown.
    assert backend.decode(ids) == "\ufffd" * 5
    assert tokenizer.decode(ids) == "é\ufffd"


def test_leading_spaces_llama2(llama2: Case) -> None:
    backend, tokenizer = llama2
    the, egg, space = (find(backend, token) for token in ("▁the", "▁egg", "▁"))
    assert stream(tokenizer, [the, egg]) == ["the", " egg", ""]
    assert stream(tokenizer, [space, the]) == ["", " the", ""]
    assert stream(tokenizer, [find(backend, "<s>"), the, egg]) == ["", "the", " egg", ""]


def test_special_tokens_between_bytes_are_left_out(byte_level: Case) -> None:
    _, tokenizer = byte_level
    assert tokenizer.eos_id is not None
    ids = tokenizer.encode("ไ🫠", add_special_tokens=False)
    with_special = [i for token_id in ids for i in (token_id, tokenizer.eos_id)]
    assert tokenizer.decode(with_special) == "ไ🫠"
    assert tokenizer.decode([tokenizer.eos_id, *ids], skip_special_tokens=False) == "</s>ไ🫠"


def test_ids_outside_the_vocabulary_add_nothing(case: Case) -> None:
    _, tokenizer = case
    ids = tokenizer.encode("the egg", add_special_tokens=False)
    assert tokenizer.decode([99999, *ids, 99999]) == "the egg"


def test_cost_per_token_does_not_grow(byte_level: Case) -> None:
    backend, _ = byte_level
    num_decoded = 0

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            nonlocal num_decoded
            num_decoded += len(ids)
            return backend.decode(ids, skip_special_tokens=skip_special_tokens)

    decoder = StreamDecoder(TokenBytes(cast(tokenizers.Tokenizer, Counting()), skip_special_tokens=True))
    broken = find(backend, "ÿ")  # the byte 0xFF, never part of a character
    assert [decoder.push(broken) for _ in range(1000)] == ["\ufffd"] * 1000
    assert num_decoded < 10


def test_encode(case: Case) -> None:
    backend, tokenizer = case
    plain = tokenizer.encode("the egg", add_special_tokens=False)
    assert plain == backend.encode("the egg", add_special_tokens=False).ids
    assert tokenizer.encode("the egg", add_special_tokens=True) == [tokenizer.bos_id, *plain]
    assert tokenizer.encode("<s>", add_special_tokens=False)[-1] == tokenizer.bos_id
    assert tokenizer.vocab_size == backend.get_vocab_size()


def test_padding_and_truncation_in_the_file_are_ignored(tmp_path: Path) -> None:
    backend = tiny_tokenizers.llama2()
    backend.enable_padding(length=64)
    backend.enable_truncation(3)
    tokenizer = Tokenizer(tiny_tokenizers.save(backend, tmp_path), bos_token=None, eos_token=None)
    assert tokenizer.bos_id is None
    ids = tokenizer.encode("the egg, the egg", add_special_tokens=False)
    assert 3 < len(ids) < 64


def test_lone_surrogate_is_a_prompt_error(case: Case) -> None:
    with pytest.raises(PromptError, match=r"surrogate '\\ud800' at character 1"):
        case[1].encode("a\ud800", add_special_tokens=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}', "null", '{"model": {"type": "BPE"}}', "\x00\x01"])
def test_broken_file_is_a_bundle_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read") as caught:
        Tokenizer(file, bos_token=None, eos_token=None)
    assert "\n" not in str(caught.value)


def test_missing_file_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no tokenizer at"):
        Tokenizer(tmp_path / "tokenizer.json", bos_token=None, eos_token=None)
    with pytest.raises(BundleError, match="no tokenizer at"):
        Tokenizer(tmp_path, bos_token=None, eos_token=None)


def test_named_tokens_must_exist(tmp_path: Path) -> None:
    file = tiny_tokenizers.save(tiny_tokenizers.llama2(), tmp_path)
    with pytest.raises(BundleError, match="eos_token '<end>'"):
        Tokenizer(file, bos_token="<s>", eos_token="<end>")


ACCENTED = ["café", "đem", "č", "<naïve tool>", "ü", "東京", "Ġx", " ñ "]
FLAGS: list[dict[str, bool]] = [{}, {"lstrip": True, "rstrip": True}, {"normalized": False}, {"special": True}]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("make", MAKERS)
def test_added_tokens_decode_to_themselves(
    make: Callable[[], tokenizers.Tokenizer], flags: dict[str, bool], tmp_path: Path
) -> None:
    backend = make()
    backend.add_tokens([tokenizers.AddedToken(token, **flags) for token in ACCENTED])
    tokenizer = Tokenizer(tiny_tokenizers.save(backend, tmp_path), bos_token=None, eos_token=None)
    for token in ACCENTED:
        token_id, letter = find(backend, token), find(backend, "a")
        ids = [letter, token_id, letter, token_id, token_id]
        shown = tokenizer.decode(ids, skip_special_tokens=False)
        # A vocabulary of characters may write a space before a token that it matches in normalised text.
        whole = f"a{token}a{token}{token}"
        assert shown == (
            whole if make is tiny_tokenizers.byte_level else backend.decode(ids, skip_special_tokens=False)
        )
        assert shown.count(token) == 3
        assert tokenizer.decode([token_id], skip_special_tokens=False).strip() == token.strip()
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == ("aa" if flags.get("special") else shown)
        assert token_id in tokenizer.encode(f"a {token}a", add_special_tokens=False)


def test_the_backend_takes_letters_of_an_added_token_for_bytes() -> None:
    """Negative control: what `tokenizers` makes of it, and transformers with it."""
    backend = tiny_tokenizers.byte_level()
    backend.add_tokens(ACCENTED)
    decoded = [backend.decode([find(backend, token)]) for token in ("café", "đem", "č")]
    assert decoded == ["caf\ufffd", "\x11em", "\r"]


@given(text=texts)
def test_the_pieces_of_a_reply_are_its_text(case: Case, text: str) -> None:
    """One for each token; a character that several tokens spell is the last one's."""
    backend, tokenizer = case
    ids = backend.encode(text, add_special_tokens=False).ids
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)


@given(before=texts, text=texts)
def test_what_goes_on_with_a_text_has_no_space_in_front(case: Case, before: str, text: str) -> None:
    """Behind any words, the ids of a continuation say what those of a text by itself say, and no more."""
    _, tokenizer = case
    alone = tokenizer.encode(text, add_special_tokens=False)
    ids = tokenizer.encode_continuation(text)
    said = tokenizer.decode(alone, skip_special_tokens=False)  # a text's own first space may be taken for the added one
    assert "".join(tokenizer.pieces(ids, has_begun=True)) in (said, text)
    both = [*tokenizer.encode("a" + before, add_special_tokens=False), *ids]
    assert tokenizer.decode(both, skip_special_tokens=False).endswith(said)


def test_a_tokenizer_that_puts_spaces_in_front(llama2: Case) -> None:
    _, tokenizer = llama2
    alone, behind = tokenizer.encode("egg", add_special_tokens=False), tokenizer.encode_continuation("egg")
    assert tokenizer.pieces(alone, has_begun=True) == [" egg"]  # the control
    assert "".join(tokenizer.pieces(behind, has_begun=True)) == "egg"
    assert tokenizer.encode_continuation(" egg") == alone


def test_names_of_tokens(byte_level: Case) -> None:
    backend, tokenizer = byte_level
    assert tokenizer.pieces([]) == []
    (special,) = tokenizer.encode("</s>", add_special_tokens=False)
    assert (tokenizer.name(special), tokenizer.pieces([special])) == ("</s>", ["</s>"])
    spelled = [id for byte in "🥚".encode() for id in [_byte(backend, byte)]]
    assert [tokenizer.name(id) for id in spelled] == ["<0xF0>", "<0x9F>", "<0xA5>", "<0x9A>"]
    assert tokenizer.pieces(spelled) == ["", "", "", "🥚"]
    assert tokenizer.pieces(spelled[:2]) == ["", "\ufffd"]
    assert tokenizer.name(10**6) == ""


def _byte(backend: tokenizers.Tokenizer, byte: int) -> int:
    """The token of one byte of a byte-level vocabulary."""
    return find(backend, {value: character for character, value in _byte_level_alphabet().items()}[byte])
