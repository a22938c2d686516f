"""The generator: text in, guided text out."""

from __future__ import annotations

import collections.abc
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from pad_rt.call import Call
from pad_rt.config import GenerationConfig
from pad_rt.planner import RowPlanner
from pad_rt.preference import PreferenceLike
from pad_rt.request import RequestMaker, asks_for_reward
from pad_rt.result import GenerationResult
from pad_rt.stream import TextStream
from pad_rt.text.chat_template import ChatTemplate
from pad_rt.text.prompt import Prompt, PromptEncoder
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import BundleError, OptionError, PreferenceError, PromptError, not_copied
from pad_runtime.loaded_bundle import Bundle


class Generator:
    """Guided decoding with one bundle (PAD, arXiv 2410.04070).

        score(a) = z_base(a) + beta * sum_i w_i * phi_i(a)      a in the base's top k;  next = argmax, or a sample

    Calls may overlap, in threads or as half-read streams: they take turns step by step in one decoder.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        manifest = bundle.manifest
        special = {"bos_token": manifest.tokenizer.bos_token, "eos_token": manifest.tokenizer.eos_token}
        file = bundle.files[manifest.tokenizer.file]
        self._tokenizer = Tokenizer(file.path, content=file.read(), **special)
        template = None
        if manifest.tokenizer.chat_template:
            template = ChatTemplate(_read_text(bundle.files[manifest.tokenizer.chat_template]), **special)
        encoder = PromptEncoder(
            self._tokenizer, template, vocab_size=manifest.vocab_size, max_length=manifest.max_length
        )
        self._requests = RequestMaker(manifest, RowPlanner(manifest, encoder), self._tokenizer)
        self._decoder, self._lock = bundle.decoder(), threading.Lock()

    @classmethod
    def load(
        cls, bundle: str | Path, *, device: str = "auto", num_threads: int | None = None, check: bool = False
    ) -> Generator:
        """Open a bundle folder written by pad-export, as it is now: what happens to the folder afterwards changes none
        of its tokens.

        Args:
            bundle: the folder.
            device: one of `pad_runtime.devices.choice.DEVICES`; "auto" takes the first that can be used here: the
                bundle's TensorRT engines, CUDA, the CPU.
            num_threads: threads inside one operator; None takes the number of physical cores.
            check: hash every file, the weights too.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError, EngineError: the device is unknown, not available here, or does not run this bundle.
        """
        opened = Bundle(Path(bundle), device=device, num_threads=num_threads, check=check)
        for note in opened.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        generator = cls(opened)
        generator.open(guided=True)
        return generator

    def open(self, *, guided: bool) -> None:
        """Open the guided graph, or the base's own, ahead of its first use."""
        self._bundle.graph(contract.STEP_GRAPH if guided else contract.BASE_GRAPH)

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds: trunks, PersRMs and their features, limits, versions."""
        return self._bundle.manifest

    def generate(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        trace: bool = False,
    ) -> GenerationResult:
        """Reply to one prompt.

        Args:
            prompt: a string (one user turn), a list of chat messages, or an `EncodedPrompt`. Messages are as OpenAI's
                clients send them; of one that the assistant began, the reply is what comes behind its words.
            preference: None runs the base alone at the base's own cost; text, a `Preference`, or a list of
                (preference, weight) pairs guide it.
            config: beta, top_k and the rest, as a `GenerationConfig` or a mapping; None takes the paper's defaults.
            trace: also return every step's candidates, row logits and scores.

        Raises:
            PromptError, PreferenceError, OptionError: what was given, what was expected, what to do.
            OutOfMemoryError: the KV cache does not fit.
            BundleError: a file of the bundle was written to since it was loaded.
        """
        return self._run([prompt], [preference], config, trace)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        preferences: Sequence[PreferenceLike] | None = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        trace: bool = False,
    ) -> list[GenerationResult]:
        """Reply to several prompts at once, each with its own preference; sequence i samples from seed + i.

        Raises:
            OptionError: more prompts than the bundle's max_batch, or not one preference a prompt.
            PromptError, PreferenceError, OutOfMemoryError: as `generate`.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            kind = type(prompts).__name__
            raise PromptError(f"a {kind} for generate_batch", expected="a list of prompts", hint="use generate for one")
        if preferences is None:
            preferences = [None] * len(prompts)
        if isinstance(preferences, str) or not isinstance(preferences, Sequence):
            kind = type(preferences).__name__
            raise PreferenceError(f"preferences of type {kind}", expected="a list with one for each prompt")
        if len(preferences) != len(prompts):
            raise OptionError(f"{len(preferences)} preferences for {len(prompts)} prompts", expected="one for each")
        return self._run(list(prompts), list(preferences), config, trace) if prompts else []

    def stream(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> TextStream:
        """Reply to one prompt piece by piece; joined, they are `generate`'s text. Arguments and errors as there.

        What `generate` returns is the stream's `result`, after the last piece.
        """
        call = self._prepare([prompt], [preference], config, trace=False)
        return TextStream(self._stream(call), call.cancellation)

    def room(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> int:
        """Tokens of reply that fit behind a prompt; below 1, it is too long itself. Arguments as for `generate`."""
        return self.manifest.max_length - self._requests.plan(prompt, preference, _make_config(config)).longest

    def __reduce__(self) -> NoReturn:
        """It belongs to its process.

        Raises:
            PadError: always.
        """
        raise not_copied("a Generator")

    # -- the loops ----------------------------------------------------------------------------------------------------

    def _run(
        self,
        prompts: list[Prompt],
        preferences: list[PreferenceLike],
        config: GenerationConfig | Mapping[str, Any] | None,
        trace: bool,
    ) -> list[GenerationResult]:
        """Text: the pieces of every reply, joined."""
        call = self._prepare(prompts, preferences, config, trace=trace)
        for _ in call.pieces(self._decoder, self._lock):
            pass
        return call.results()

    def _stream(self, call: Call) -> collections.abc.Generator[str, None, GenerationResult]:
        """Text: the pieces of one reply, and then the whole."""
        with closing(call.pieces(self._decoder, self._lock)) as pieces:
            for _, piece in pieces:
                yield piece
        return call.results()[0]

    def _prepare(
        self,
        prompts: list[Prompt],
        preferences: list[PreferenceLike],
        config: GenerationConfig | Mapping[str, Any] | None,
        *,
        trace: bool,
    ) -> Call:
        """Check everything, and turn prompts and preferences into requests."""
        started = time.perf_counter()
        config, manifest = _make_config(config), self.manifest
        if len(prompts) > manifest.max_batch:
            raise OptionError(
                f"{len(prompts)} prompts at once", expected=f"at most {manifest.max_batch}, the bundle's max_batch"
            )
        requests = [
            self._requests.make(prompt, preference, config, seed=config.seed + number, trace=trace)
            for number, (prompt, preference) in enumerate(zip(prompts, preferences, strict=True))
        ]
        if trace and not any(map(asks_for_reward, prompts, preferences)):
            raise OptionError("trace without a preference", hint="the base alone weighs nothing: leave trace out")
        return Call(requests, trace, started)


def _read_text(file: HeldFile) -> str:
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file.path} cannot be read: {error}", hint="export the bundle again") from None


def _make_config(config: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
    if config is None:
        return GenerationConfig()
    if isinstance(config, Mapping):
        return GenerationConfig.from_mapping(config)
    if not isinstance(config, GenerationConfig):
        raise OptionError(f"a config of type {type(config).__name__}", expected="a GenerationConfig or a mapping")
    return config
