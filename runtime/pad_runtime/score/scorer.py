"""The scorer: log-probabilities and phi of given replies, by the score graph, which keeps no KV cache.

    log_prob(a) = log softmax(z_base)(a)                            over the vocabulary
    phi_i(a)    = log softmax_T(z_i)(a) - log softmax_T(z_ref)(a)   over T: a and the base's likeliest other tokens

z_i are the logits of a PersRM's feature i, z_ref those of its reference: the base, or its own frozen backbone. These
are the normalisers of decoding and of training (arXiv 2410.04070), so phi here is what training made large.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.bundle.held_file import BundleFiles
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation, run_or_cancel
from pad_runtime.devices.binding import bind, upload
from pad_runtime.devices.provider import Graph, Provider
from pad_runtime.errors import OptionError, PreferenceError, PromptError
from pad_runtime.score.inputs import Array, ScoreInputs, ScoreRun
from pad_runtime.score.parts import RunLimits, cut
from pad_runtime.score.request import ReplyScores, ScoreRequest


class Scorer:
    """Scores replies of one bundle. One thread at a time may use it.

    Args:
        graph: the score graph.
        manifest, files: the bundle's.
        provider: what runs the graph.
        limits: what one run may come to.
    """

    def __init__(
        self, graph: Graph, manifest: Manifest, files: BundleFiles, provider: Provider, limits: RunLimits | None = None
    ) -> None:
        self._graph, self._manifest, self._memory = graph, manifest, provider.memory
        persrms = PersRMFiles(files, manifest)
        self._factors = LoraFactors(persrms, manifest, self._memory)
        self._heads = FeatureHeads(persrms, manifest, self._memory)
        self._inputs = ScoreInputs(manifest, self._factors, self._heads)
        self._limits = limits or RunLimits()

    def score(
        self, replies: Sequence[ScoreRequest], *, top_k: int, cancellation: Cancellation | None = None
    ) -> list[ReplyScores]:
        """Score replies, in as many runs as memory asks for; what a reply is given depends on no other.

        Args:
            replies: each with its prompts.
            top_k: tokens that phi is normalised over: the reply's own and the base's likeliest others.
            cancellation: ends the computation before the graph's next operator; so does Ctrl-C.

        Raises:
            PromptError: an empty prompt, ids that no token has, or more tokens than the bundle takes.
            PreferenceError: a PersRM that the bundle does not have.
            OptionError: top_k is below 1.
            OutOfMemoryError: a run does not fit.
            CancelledError: it was cancelled.
        """
        if top_k < 1:
            raise OptionError(f"top_k {top_k}", expected="at least 1")
        for request in replies:
            self._check(request)
        cancellation = cancellation or Cancellation()
        found: list[list[ReplyScores]] = [[] for _ in replies]  # of each reply its parts, in order
        for parts in cut(replies, self._manifest, top_k=top_k, limits=self._limits):
            run = self._inputs.make(parts, top_k)
            for part, scores in zip(parts, run.scores(self._run(run, cancellation)), strict=True):
                found[part.number].append(scores)
        return [self._joined(request, scores) for request, scores in zip(replies, found, strict=True)]

    def _run(self, run: ScoreRun, cancellation: Cancellation) -> dict[str, Array]:
        """The outputs of one run, by name."""
        graph, memory = self._graph, self._memory
        values = self._factors.buffers(run.active)
        for trunk in self._manifest.trunks:
            if trunk.has_features:
                values |= self._heads.buffers(trunk, self._heads.features(trunk, run.active))
        values |= upload(graph, memory, run.arrays)
        outputs = {name: memory.zeros(shape, np.float32) for name, shape in run.shapes.items()}
        bound = bind(graph, values, outputs, repeated=False, cancellation=cancellation)
        run_or_cancel(bound, cancellation, "the scoring of replies")
        return {name: buffer.read() for name, buffer in outputs.items()}

    def _joined(self, request: ScoreRequest, parts: Sequence[ReplyScores]) -> ReplyScores:
        """The parts of one reply as one; of an empty reply there are none."""
        if not parts:
            persrms = [self._manifest.persrms[reward.persrm] for reward in request.rewards]
            nothing = tuple(
                np.zeros((0, len(persrm.features) if persrm.feature_head else 1), np.float32) for persrm in persrms
            )
            return ReplyScores(np.zeros(0, np.float32), nothing)
        phi = zip(*(part.phi for part in parts), strict=True)
        return ReplyScores(np.concatenate([part.log_probs for part in parts]), tuple(map(np.concatenate, phi)))

    def _check(self, request: ScoreRequest) -> None:
        limit, vocab_size = self._manifest.max_length, self._manifest.vocab_size
        num_persrms = len(self._manifest.persrms)
        for reward in request.rewards:
            if not 0 <= reward.persrm < num_persrms:
                raise PreferenceError(f"PersRM number {reward.persrm}", expected=f"0 to {num_persrms - 1}")
        prompts = [request.prompt, *(reward.prompt for reward in request.rewards)]
        for prompt in prompts:
            if not prompt:
                raise PromptError("an empty prompt before a reply", expected="at least one token")
            if len(prompt) + len(request.reply) > limit:
                raise PromptError(
                    f"a prompt of {len(prompt)} and a reply of {len(request.reply)} tokens",
                    expected=f"at most {limit} together, the bundle's max_length",
                )
        for token in (token for ids in (*prompts, request.reply) for token in ids):
            if not 0 <= token < vocab_size:
                raise PromptError(f"token id {token}", expected=f"0 to {vocab_size - 1}")
