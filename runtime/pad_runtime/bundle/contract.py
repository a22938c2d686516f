"""Names, axes and element types of the step graph: read by the exporter that writes it and the runtime that feeds it.

Axes: ``batch`` sequences; ``rows`` of one sequence over all trunks (row 0 is the base); ``R`` = batch x the rows of
one trunk, sequence-major; ``N`` prompts that those rows read, each of a sequence once; ``s`` new tokens; ``k``
candidates; ``P`` features of the PersRMs bound to a trunk.

A trunk's first layers, which no adapter touches, run once for each prompt; where the first adapter sits, the rows part.

A *trunk* is one set of decoder weights. Trunk 0 is the base and has no prefix; another trunk's tensors carry its name
(``reward.input_ids``). This module imports nothing.
"""

FORMAT = "pad-rt-bundle"
FORMAT_VERSION = 5
MANIFEST_FILE = "pad.json"
STEP_GRAPH = "step"  # every trunk, every row, the mix
BASE_GRAPH = "base"  # the base alone over the same weights file

BASE_TRUNK = "base"

# -- per trunk, in ------------------------------------------------------------------------------------------------
INPUT_IDS = "input_ids"  # [N, s] int64, right-padded
SEQLENS_K = "seqlens_k"  # [N] int32, index of each prompt's last valid token in the cache once this call is done
LAST_TOKEN = "last_token"  # [N, 1] int64, index of each prompt's last valid token among the s new ones
PROMPT_SEQUENCE = "prompt_sequence"  # [N, 1] int64, the sequence each prompt belongs to
ROW_PROMPT = "row_prompt"  # [R] int64, the prompt each row reads; not in the base's own graph
TOTAL_SEQUENCE_LENGTH = (
    "total_sequence_length"  # [] int32, ort dialect: s for a first prompt, any larger value after it
)
LORA_GATE = "lora_gate"  # + .site  [R, 1, rank] 1 where the row uses that adapter column, else 0
FEATURE_HEADS = "feature_heads"  # [P, hidden, hidden], transposed: h @ head
FEATURE_BIASES = "feature_biases"  # [P, 1, hidden]
PREFERENCE_WEIGHTS = "preference_weights"  # [batch, reward rows of the trunk, 1 + P]; column 0 weighs h itself

# -- per step, in -------------------------------------------------------------------------------------------------
COEFFICIENTS = "coefficients"  # [batch, rows] float32
TOP_K = "top_k"  # [1] int64, all candidates: offered ends of the turn count
END_BONUS = "end_bonus"  # [1] float32, what the ends of the turn gain where candidates are picked, not in their scores
TEMPERATURE = "temperature"  # [batch, 1] float32, 0 is greedy
TOP_P = "top_p"  # [batch, 1] float32, above 1 keeps every candidate
NOISE = "noise"  # [n, batch, k] float32, standard Gumbel; step i uses noise[min(i, n - 1)]
LAST_NOISE = "last_noise"  # [1] int64, n - 1: an input, for a length that the graph takes itself would be on the host
STEP = "step"  # [1] int64, how many tokens were chosen before this one
MAX_POSITION = "max_position"  # [1] int32, last slot of the KV cache: lengths never run past it

# -- out ----------------------------------------------------------------------------------------------------------
NEXT_IDS = "next_ids"  # [batch] int64: all the host ever reads
NEXT_INPUT_IDS = "next_input_ids"  # per trunk [N, 1] int64
NEXT_SEQLENS_K = "next_seqlens_k"  # per trunk [N] int32
NEXT_STEP = "next_step"  # [1] int64
CANDIDATES = "candidates"  # trace: [batch, k] int64, offered ends of the turn, then best base logit first
ROW_LOGITS = "row_logits"  # trace: [batch, rows, k] float32
SCORES = "scores"  # trace: [batch, k] float32

# Read by operators on the host, whatever the device: they size or bound other tensors.
HOST_INPUTS = (TOP_K, TOTAL_SEQUENCE_LENGTH)
CAPACITY = "capacity"  # the axis of a KV cache's slots
TRUNK_INPUTS = (INPUT_IDS, SEQLENS_K, LAST_TOKEN, PROMPT_SEQUENCE, ROW_PROMPT, TOTAL_SEQUENCE_LENGTH)
STEP_INPUTS = (COEFFICIENTS, TOP_K, END_BONUS, TEMPERATURE, TOP_P, NOISE, LAST_NOISE, STEP, MAX_POSITION)
TRACE_OUTPUTS = (CANDIDATES, ROW_LOGITS, SCORES)

# Linears of a layer, as packed in the graph: q, k, v share one input and one matrix, gate and up another.
LORA_SITES = ("qkv", "o", "gate_up", "down")

ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")  # libraries that engines are built with, of the standard dialect
ENGINE_PROFILES = ("prefill", "decode")  # in the order in which an engine holds them

# -- weights of a graph that a manifest's numbers are held against; their names begin with the trunk's ---------------
EMBEDDING = "embed"  # [vocab, hidden]; in blocks it is looked up as embed.rows
ROPE = "rope."  # + kind, + .cos or .sin  [max_length, rotated / 2]

# -- symbolic axes ------------------------------------------------------------------------------------------------
PROMPTS = "prompts"  # N
ROWS = "rows"  # R


def trunk_prefix(trunk: str) -> str:
    """Prefix of a trunk's tensor names: empty for the base."""
    return "" if trunk == BASE_TRUNK else f"{trunk}."


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
