"""The step graph: every trunk's layers, the candidates, the candidate-only reward head, the mix and the choice.

score(a) = sum_rows c_row * z_row(a)      a in the base row's top k, and the ends of the turn where they are offered
                                          (arXiv 2410.04070, normalisers cancelled)
next     = argmax(score + temperature * Gumbel)  over the candidates inside top_p
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from pad_export.graph.dialect import DIALECTS
from pad_export.graph.matrix import Storage, gather_rows, multiply_transposed
from pad_export.graph.trunk import emit_trunk
from pad_export.graph.writer import Graph, element_type
from pad_export.trunk import Trunk
from pad_export.weights.file import WeightsFile
from pad_export.weights.stream import head_weight
from pad_runtime.bundle import contract

_FLOAT, _INT64, _INT32 = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.INT32)


def build_step_graph(trunks: Sequence[Trunk], weights: WeightsFile, storage: Storage) -> Graph:
    """The guided graph over all trunks. `trunks[0]` is the base; its further rows, if it serves any, are rewards."""
    return _StepBuilder(contract.STEP_GRAPH, trunks, weights, storage).build(guided=True)


def build_base_graph(base: Trunk, weights: WeightsFile, storage: Storage) -> Graph:
    """The base alone over the same weights: one row a sequence, no adapter, no mix, the same choice at the end."""
    plain = Trunk(base.name, base.checkpoint, base.spec)
    return _StepBuilder(contract.BASE_GRAPH, [plain], weights, storage).build(guided=False)


class _StepBuilder:
    def __init__(self, name: str, trunks: Sequence[Trunk], weights: WeightsFile, storage: Storage) -> None:
        self.graph = Graph(name)
        self.trunks, self.weights = trunks, weights
        self.dialect, self.float_type = DIALECTS[storage.dialect], storage.float_type

    def build(self, *, guided: bool) -> Graph:
        g = self.graph
        base = self.trunks[0]
        hidden = [
            emit_trunk(g, trunk, self.weights, self.dialect(g, trunk.spec, self.float_type), by_row=guided)
            for trunk in self.trunks
        ]  # each [R, hidden]
        self.top_k = g.input(contract.TOP_K, _INT64, [1])
        self.temperature = g.input(contract.TEMPERATURE, _FLOAT, ["batch", 1])
        batch = g.op("Shape", self.temperature, name="batch", start=0, end=1)
        grouped = [self._group(value, batch, trunk) for value, trunk in zip(hidden, self.trunks, strict=True)]
        first = g.constant(0, np.int64)
        base_hidden = g.op("Gather", grouped[0], first, name="base_hidden", axis=1)  # [batch, hidden]
        logits = multiply_transposed(g, self.weights, head_weight(base, self.weights), base_hidden, name="lm_head")
        logits = self._to_float(self._softcap(logits, base, "lm_head"), "lm_head")  # [batch, vocab]
        best, candidates = self._pick(logits, batch, ends=base.checkpoint.eos_token_ids if guided else ())
        scores = best
        if guided:
            scores = self._mix(grouped, best, candidates)
            g.output(candidates, _INT64, ["batch", "k"])
            g.output(contract.ROW_LOGITS, _FLOAT, ["batch", "total_rows", "k"])
            g.output(contract.SCORES, _FLOAT, ["batch", "k"])
        self._advance(self._choose(scores, candidates))
        return g

    def _pick(self, logits: str, batch: str, *, ends: Sequence[int]) -> tuple[str, str]:
        """The candidates' base logits and ids, [batch, k] each: the `ends` of the turn if offered, then the best."""
        g, order = self.graph, logits
        if ends:
            shape = g.op("Concat", batch, g.constant([len(ends)], np.int64), name="ends/shape", axis=0)
            places = g.op("Expand", g.constant([ends], np.int64), shape, name="ends/places")  # [batch, ends]
            raised = g.op("GatherElements", logits, places, name="ends/logits", axis=1)
            raised = g.op("Add", raised, g.input(contract.END_BONUS, _FLOAT, [1]), name="ends/raised")
            order = g.op("ScatterElements", logits, places, raised, name="ends/order", axis=1)
        best, candidates = g.ops(
            "TopK", order, self.top_k, name="top_k_", outputs=["best", contract.CANDIDATES], axis=-1
        )
        if ends:
            best = g.op("GatherElements", logits, candidates, name="ends/best", axis=1)
        return best, candidates

    # -- the mix ------------------------------------------------------------------------------------------------------

    def _group(self, hidden: str, batch: str, trunk: Trunk) -> str:
        """[R, hidden] -> [batch, rows of the trunk, hidden]."""
        g, at = self.graph, trunk.prefix
        tail = g.constant([-1, trunk.spec.hidden_size], np.int64)
        shape = g.op("Concat", batch, tail, name=f"{at}group/shape", axis=0)
        return g.op("Reshape", hidden, shape, name=f"{at}group")

    def _mix(self, grouped: Sequence[str], best: str, candidates: str) -> str:
        """scores [batch, k] = coefficients [batch, rows] x row logits [batch, rows, k]."""
        g = self.graph
        axis1 = g.constant([1], np.int64)
        logits = [g.op("Unsqueeze", best, axis1, name="mix/base_row")]
        for index, (trunk, hidden) in enumerate(zip(self.trunks, grouped, strict=True)):
            rows = hidden
            if index == 0:
                if len(self.trunks) > 1:
                    continue  # with trunks of their own for the rewards, the base trunk has the base row only
                end = g.constant([np.iinfo(np.int64).max], np.int64)
                rows = g.op("Slice", hidden, axis1, end, axis1, name="reward_hidden")
            logits.append(self._reward_logits(rows, candidates, trunk))
        rows_logits = g.op("Concat", *logits, name="mix/rows", output=contract.ROW_LOGITS, axis=1)
        coefficients = g.input(contract.COEFFICIENTS, _FLOAT, ["batch", "total_rows"])
        weighed = g.op("Unsqueeze", coefficients, axis1, name="mix/coefficients")
        mixed = g.op("MatMul", weighed, rows_logits, name="mix")  # [batch, 1, k]
        return g.op("Squeeze", mixed, axis1, name="mix/scores", output=contract.SCORES)

    def _reward_logits(self, hidden: str, candidates: str, trunk: Trunk) -> str:
        """Logits of the k candidates only, [batch, rows, k]: gathers k rows of the lm_head, never the vocabulary.

        Features mix before the lm_head, which is linear; where the family caps its logits, after the cap, which is not.
        """
        g, at = self.graph, trunk.prefix
        phi = weights = ""
        if trunk.has_features:
            phi, weights = self._features(hidden, trunk)
            if trunk.spec.logit_softcap:
                flat = g.constant([0, -1, trunk.spec.hidden_size], np.int64)
                hidden = g.op("Reshape", phi, flat, name=f"{at}features/flat")  # [batch, rows x (1 + P), hidden]
            else:
                hidden = self._mix_features(phi, weights, trunk)
        head_rows = f"{at}reward/head_rows"
        weight = head_weight(trunk, self.weights)
        rows = gather_rows(g, self.weights, weight, candidates, name=head_rows)  # [batch, k, hidden]
        columns = g.op("Transpose", hidden, name=f"{at}reward/columns", perm=[0, 2, 1])  # [batch, hidden, rows]
        logits = g.op("MatMul", rows, columns, name=f"{at}reward/dots")
        logits = g.op("Transpose", logits, name=f"{at}reward/logits", perm=[0, 2, 1])
        logits = self._softcap(logits, trunk, f"{at}reward")
        if trunk.has_features and trunk.spec.logit_softcap:
            shape = g.op("Shape", phi, name=f"{at}features/shape", start=0, end=3)
            shape = g.op("Concat", shape, g.constant([-1], np.int64), name=f"{at}features/split", axis=0)
            logits = g.op("Reshape", logits, shape, name=f"{at}features/logits")  # [batch, rows, 1 + P, k]
            logits = self._mix_features(logits, weights, trunk)
        return self._to_float(logits, f"{at}reward")

    def _features(self, hidden: str, trunk: Trunk) -> tuple[str, str]:
        """h and every W_i h + b_i of each reward row [batch, rows, 1 + P, hidden], and their weights [.., 1, 1 + P]."""
        g, at, spec = self.graph, trunk.prefix, trunk.spec
        float_type = element_type(self.float_type)
        features, rows = f"{at}features", f"{at}reward_rows"
        heads = g.input(at + contract.FEATURE_HEADS, float_type, [features, spec.hidden_size, spec.hidden_size])
        biases = g.input(at + contract.FEATURE_BIASES, float_type, [features, 1, spec.hidden_size])
        weights = g.input(at + contract.PREFERENCE_WEIGHTS, float_type, ["batch", rows, f"{at}weights"])
        axis1, axis2 = g.constant([1], np.int64), g.constant([2], np.int64)
        plain = g.op("Unsqueeze", hidden, axis1, name=f"{at}features/rows")  # [batch, 1, rows, hidden]
        phi = g.op("MatMul", plain, heads, name=f"{at}features/heads")  # [batch, P, rows, hidden]
        phi = g.op("Add", phi, biases, name=f"{at}features/biases")
        phi = g.op("Concat", plain, phi, name=f"{at}features/all", axis=1)  # [batch, 1 + P, rows, hidden]
        phi = g.op("Transpose", phi, name=f"{at}features/by_row", perm=[0, 2, 1, 3])
        return phi, g.op("Unsqueeze", weights, axis2, name=f"{at}features/weights")

    def _mix_features(self, values: str, weights: str, trunk: Trunk) -> str:
        """sum_i w_i v_i over the features: [batch, rows, 1 + P, n] -> [batch, rows, n]."""
        g, at = self.graph, trunk.prefix
        mixed = g.op("MatMul", weights, values, name=f"{at}features/mix")  # [batch, rows, 1, n]
        return g.op("Squeeze", mixed, g.constant([2], np.int64), name=f"{at}features/out")

    # -- the choice ---------------------------------------------------------------------------------------------------

    def _choose(self, scores: str, candidates: str) -> str:
        """Greedy or sampled: next ids [batch]. Temperature 0 leaves the arg max of the scores, exactly."""
        g = self.graph
        top_p = g.input(contract.TOP_P, _FLOAT, ["batch", 1])
        noise = g.input(contract.NOISE, _FLOAT, ["noise_steps", "batch", "k"])
        step = g.input(contract.STEP, _INT64, [1])
        axis0, axis1 = g.constant([0], np.int64), g.constant([1], np.int64)
        ordered, order = g.ops(
            "TopK", scores, self.top_k, name="choose/sort", outputs=["choose/ordered", "choose/order"], axis=-1
        )
        floor = g.op("Max", self.temperature, g.constant(1e-6, np.float32), name="choose/temperature")
        chances = g.op("Softmax", g.op("Div", ordered, floor, name="choose/scaled"), name="choose/chances", axis=-1)
        before = g.op("CumSum", chances, g.constant(1, np.int64), name="choose/mass_before", exclusive=1)
        inside = g.op("Less", before, top_p, name="choose/inside")
        last = g.input(contract.LAST_NOISE, _INT64, [1])
        now = g.op("Gather", noise, g.op("Min", step, last, name="choose/index"), name="choose/noise_now", axis=0)
        gumbel = g.op("Squeeze", now, axis0, name="choose/gumbel")  # [batch, k]
        shaken = g.op(
            "Add", ordered, g.op("Mul", gumbel, self.temperature, name="choose/spread"), name="choose/perturbed"
        )
        allowed = g.op("Where", inside, shaken, g.constant(np.finfo(np.float32).min, np.float32), name="choose/allowed")
        winner = g.op("ArgMax", allowed, name="choose/winner", axis=-1, keepdims=1)  # [batch, 1]
        place = g.op("GatherElements", order, winner, name="choose/place", axis=1)
        chosen = g.op("GatherElements", candidates, place, name="choose/id", axis=1)
        next_ids = g.op("Squeeze", chosen, axis1, name="choose/ids", output=contract.NEXT_IDS)
        g.output(next_ids, _INT64, ["batch"])
        g.output(g.op("Add", step, axis1, name="advance/step", output=contract.NEXT_STEP), _INT64, [1])
        return next_ids

    def _advance(self, next_ids: str) -> None:
        """What the next step takes in, written beside what this one read, so that running a step twice is harmless."""
        g = self.graph
        last = g.input(contract.MAX_POSITION, _INT32, [1])
        for trunk in self.trunks:
            at = trunk.prefix
            prompts = f"{at}prompts"
            sequence = g.input(at + contract.PROMPT_SEQUENCE, _INT64, [prompts, 1])
            ids = g.op("Gather", next_ids, sequence, name=f"{at}advance/ids", output=at + contract.NEXT_INPUT_IDS)
            grown = g.op("Add", at + contract.SEQLENS_K, g.constant([1], np.int32), name=f"{at}advance/grown")
            # A finished sequence of a batch runs on until the others stop; it must not leave its cache.
            lengths = g.op("Min", grown, last, name=f"{at}advance/lengths", output=at + contract.NEXT_SEQLENS_K)
            g.output(ids, _INT64, [prompts, 1])
            g.output(lengths, _INT32, [prompts])

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _softcap(self, logits: str, trunk: Trunk, name: str) -> str:
        """cap * tanh(logits / cap), where the family caps its logits."""
        cap = trunk.spec.logit_softcap
        if not cap:
            return logits
        g, dtype = self.graph, np.dtype(self.float_type)
        scaled = g.op("Div", logits, g.constant(cap, dtype), name=f"{name}/softcap/scaled")
        return g.op(
            "Mul", g.op("Tanh", scaled, name=f"{name}/softcap/tanh"), g.constant(cap, dtype), name=f"{name}/softcap"
        )

    def _to_float(self, logits: str, name: str) -> str:
        if self.float_type == "float32":
            return logits
        return self.graph.op("Cast", logits, name=f"{name}/float", to=_FLOAT)
