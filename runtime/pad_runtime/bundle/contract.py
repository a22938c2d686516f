"""Names, axes and element types of the step graph: read by the exporter that writes it and the runtime that feeds it.

Axes: S sequences; k candidates; V tokens of the vocabulary; and of one trunk: N prompts, R rows that read them, L
readings of those rows, P features of the PersRMs bound to it, s new tokens. A row is what is computed, a reading is how
a row becomes scores; sequences may have different numbers of either, and each names what it is of.

A trunk's first layers, which no adapter touches, run once for each prompt; where the first adapter sits, the rows part.

A *trunk* is one set of decoder weights. Trunk 0 is the base and has no prefix; another trunk's tensors and axes carry
its name (``reward.input_ids``). This module imports nothing of PAD-RT's.
"""

from typing import Literal, TypeAlias, get_args

FORMAT = "pad-rt-bundle"
FORMAT_VERSION = 6
MANIFEST_FILE = "pad.json"
STEP_GRAPH = "step"  # every trunk, every row, every reading
BASE_GRAPH = "base"  # the base alone over the same weights file
SCORE_GRAPH = "score"  # every trunk and row over whole texts, with no KV cache; over the same weights file too

BASE_TRUNK = "base"

# -- per trunk, in ------------------------------------------------------------------------------------------------
INPUT_IDS = "input_ids"  # [N, s] int64, right-padded
SEQLENS_K = "seqlens_k"  # [N] int32, index of each prompt's last valid token in the cache once this call is done
LAST_TOKEN = "last_token"  # [N, 1] int64, index of each prompt's last valid token among the s new ones
PROMPT_SEQUENCE = "prompt_sequence"  # [N, 1] int64, the sequence each prompt belongs to
TOTAL_SEQUENCE_LENGTH = (
    "total_sequence_length"  # [] int32, ort dialect: s for a first prompt, any larger value after it
)
# In the step graph only:
ROW_PROMPT = "row_prompt"  # [R] int64, the prompt each row reads
LORA_GATE = "lora_gate"  # + .site  [R, 1, rank] 1 where the row uses that adapter column, else 0
READING_ROW = "reading_row"  # [L] int64, the row of this trunk that each reading reads
READING_SEQUENCE = "reading_sequence"  # [L] int64, the sequence whose candidates it scores
FEATURE_HEADS = "feature_heads"  # [P, hidden, hidden], transposed: h @ head
FEATURE_BIASES = "feature_biases"  # [P, 1, hidden]
READING_WEIGHTS = "reading_weights"  # [L, 1 + P], where the trunk has features; column 0 weighs h itself

# -- per step, in -------------------------------------------------------------------------------------------------
BASE_ROW = "base_row"  # [S] int64, the row of trunk 0 that is each sequence's base; in the base's own graph its prompt
MAX_TOP_K = "max_top_k"  # [1] int64, k: candidates that are taken for every sequence
TOP_K = "top_k"  # [S, 1] int64, candidates of each sequence, at most k; offered ends of the turn count
TEMPERATURE = "temperature"  # [S, 1] float32, 0 is greedy
TOP_P = "top_p"  # [S, 1] float32, above 1 keeps every candidate
MIN_P = "min_p"  # [S, 1] float32, least chance of a candidate, as a part of the largest one; 0 keeps every candidate
NOISE = "noise"  # [S, n, k] float32, standard Gumbel; a sequence's step i uses noise[s, min(i, n - 1)]
LAST_NOISE = "last_noise"  # [1] int64, n - 1: an input, for a length that the graph takes itself would be on the host
STEP = "step"  # [S, 1] int64, how many tokens each sequence has chosen before this one
BIAS = "bias"  # [1 or S, 1 or V] float32, added to the base's logits
ALLOWED = "allowed"  # [1 or S, 1 or ceil(V / 8)] uint8, a bit for each token, least significant first; 255 alone: all
WRITTEN = "written"  # [S, 1 or V] float32, IN_PROMPT for a token of the prompt, + 1 for each time it was chosen
REPETITION_PENALTY = "repetition_penalty"  # [S, 1] float32, of a token that is written anywhere; 1 is off
PRESENCE_PENALTY = "presence_penalty"  # [S, 1] float32, of a token that was chosen; 0 is off
FREQUENCY_PENALTY = "frequency_penalty"  # [S, 1] float32, of a token, for each time it was chosen; 0 is off
# In the step graph only:
BASE_COEFFICIENT = "base_coefficient"  # [S, 1] float32
COEFFICIENTS = "coefficients"  # [S, all trunks' L side by side] float32, 0 outside of a sequence's own readings
END_BONUS = "end_bonus"  # [S, 1] float32, gained by the ends of the turn where candidates are picked, not in scores

IN_PROMPT = 0.5  # a token's count in WRITTEN before it was chosen; with a width of 1, no sequence counts

# -- out ----------------------------------------------------------------------------------------------------------
NEXT_IDS = "next_ids"  # [S] int64: all the host ever reads
NEXT_INPUT_IDS = "next_input_ids"  # per trunk [N, 1] int64
NEXT_SEQLENS_K = "next_seqlens_k"  # per trunk [N] int32
NEXT_STEP = "next_step"  # [S, 1] int64
NEXT_WRITTEN = "next_written"  # [S, 1 or V] float32
CANDIDATES = "candidates"  # trace: [S, k] int64, offered ends of the turn, then best base logit first
BASE_LOGITS = "base_logits"  # trace: [S, k] float32, with no bias and no penalty
READING_LOGITS = "reading_logits"  # trace: [all trunks' L, k] float32
SCORES = "scores"  # trace: [S, k] float32

# Read by operators on the host, whatever the device: they size or bound other tensors.
HOST_INPUTS = (MAX_TOP_K, TOTAL_SEQUENCE_LENGTH)
TRUNK_INPUTS = (
    *(INPUT_IDS, SEQLENS_K, LAST_TOKEN, PROMPT_SEQUENCE, TOTAL_SEQUENCE_LENGTH),
    *(ROW_PROMPT, READING_ROW, READING_SEQUENCE),
)
STEP_INPUTS = (
    *(BASE_ROW, MAX_TOP_K, TOP_K, TEMPERATURE, TOP_P, MIN_P, NOISE, LAST_NOISE, STEP),
    *(BIAS, ALLOWED, WRITTEN, REPETITION_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY),
    *(BASE_COEFFICIENT, COEFFICIENTS, END_BONUS),
)
TRACE_OUTPUTS = (CANDIDATES, BASE_LOGITS, READING_LOGITS, SCORES)

# -- of the score graph -------------------------------------------------------------------------------------------
# M scored tokens, of all replies one after the other; a trunk's prompts are texts here, replies behind them, and a
# reading reads one position of one row. What it takes beside these is as in the step graph.
SCORED_TOKENS = "scored_tokens"  # [M] int64, the tokens themselves
BASE_PLACE = "base_place"  # [M, 2] int64, the row of trunk 0 and the position there whose hidden state predicts each
READING_PLACE = "reading_place"  # per trunk [L, 2] int64, the row and position that each reading reads
READING_TOKEN = "reading_token"  # per trunk [L] int64, the scored token, and so the candidates, that it reads
TOKEN_LOG_PROBS = "token_log_probs"  # out: [M] float32, the base's, over the whole vocabulary
BASE_LOG_PROBS = (
    "base_log_probs"  # out: [M] float32, the base's, over k candidates: the token, then the likeliest others
)
READING_LOG_PROBS = "reading_log_probs"  # out: per trunk [L, 1 + P] float32, over the same; column 0 is of h itself
SCORE_TRUNK_INPUTS = (INPUT_IDS, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, ROW_PROMPT, READING_PLACE, READING_TOKEN)
SCORE_INPUTS = (SCORED_TOKENS, BASE_PLACE, MAX_TOP_K)

# Linears of a layer, as packed in the graph: q, k, v share one input and one matrix, gate and up another.
LORA_SITES = ("qkv", "o", "gate_up", "down")

EngineTarget: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]  # builds engines of a bundle in the standard dialect
ENGINE_TARGETS: tuple[EngineTarget, ...] = get_args(EngineTarget)
ENGINE_GRAPHS = (STEP_GRAPH, BASE_GRAPH)  # graphs that engines are built of
ENGINE_PROFILES = ("prefill", "decode")  # in the order in which an engine holds them

# -- weights of a graph that a manifest's numbers are held against; their names begin with the trunk's ---------------
EMBEDDING = "embed"  # [vocab, hidden]; in blocks it is embed.rows, looked up, and embed.scales [vocab, hidden / BLOCK]
BLOCK_SIZE = 32  # weights that share a scale
ROPE = "rope."  # + kind, + .cos or .sin  [max_length, rotated / 2]

# -- symbolic axes ------------------------------------------------------------------------------------------------
SEQUENCES = "sequences"  # S
K = "k"  # candidates
NOISE_STEPS = "noise_steps"  # n
TOTAL_READINGS = "total_readings"  # L of all trunks
TOKENS = "tokens"  # M
BIAS_SEQUENCES, BIAS_WIDTH = "bias_sequences", "bias_width"
ALLOWED_SEQUENCES, ALLOWED_WIDTH = "allowed_sequences", "allowed_width"
WRITTEN_WIDTH = "written_width"
CAPACITY = "capacity"  # positions of a KV cache, of every trunk
# Of one trunk, whose name they carry as its tensors do:
PROMPTS = "prompts"  # N
ROWS = "rows"  # R
READINGS = "readings"  # L
NEW_TOKENS = "s"
FEATURES = "features"  # P
WEIGHT_COLUMNS = "weights"  # 1 + P


def trunk_prefix(trunk: str) -> str:
    """Prefix of a trunk's tensor names: empty for the base."""
    return "" if trunk == BASE_TRUNK else f"{trunk}."


def takes_readings(trunk: int, num_trunks: int) -> bool:
    """Whether rows of a trunk, by its number, are read: beside trunks of their own for the rewards, the base's are not.

    They are its candidates alone then.
    """
    return trunk > 0 or num_trunks == 1


def past_key(layer: int) -> str:
    """Key cache in: [N or R, kv_heads, capacity, head_dim], R from where the rows part."""
    return f"past_key_values.{layer}.key"


def past_value(layer: int) -> str:
    """Value cache in, as `past_key`."""
    return f"past_key_values.{layer}.value"


def present_key(layer: int) -> str:
    """Key cache out, the same buffer as `past_key`."""
    return f"present.{layer}.key"


def present_value(layer: int) -> str:
    """Value cache out, the same buffer as `past_value`."""
    return f"present.{layer}.value"


def lora_a(layer: int, site: str) -> str:
    """Down-projection of one site: [in_features, rank]."""
    return f"lora.{layer}.{site}.a"


def lora_b(layer: int, site: str) -> str:
    """Up-projection of one site, its alpha/rank scale multiplied in: [rank, out_features]."""
    return f"lora.{layer}.{site}.b"


def lora_gate(site: str) -> str:
    """Which rows take which adapter columns at one site: [R, 1, rank]."""
    return f"{LORA_GATE}.{site}"


def rank_axis(site: str) -> str:
    """Axis of the adapter columns at one site of a trunk."""
    return f"rank.{site}"
