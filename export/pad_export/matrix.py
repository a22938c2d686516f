"""A weight matrix in the graph: how each precision stores it, and the operators that multiply by it or read its rows.

fp32 and fp16 store it whole. int8 and int4 store blocks (see `pad_export.blocks`): MatMulNBits multiplies by them in
int8 arithmetic, and GatherBlockQuantized reads rows of the same bytes, so that embedding and lm_head are stored once.
"""

from __future__ import annotations

from pad_export.blocks import BLOCK, Blocks
from pad_export.graph import MICROSOFT, Graph
from pad_export.weights import WeightsFile

_INT8_ARITHMETIC = 4  # MatMulNBits' accuracy_level: activations are rounded to int8 in blocks too; 3 to 4 times as fast
EMBEDDING_BITS = 8  # an embedding is looked up, not streamed, and the lm_head that it often is decides between tokens


def matrix_bits(precision: str, site: str, layer: int, num_layers: int) -> int:
    """Bits of a layer's packed linear at a precision; 0 where it is stored whole.

    At int4 the values' projection is what perplexity hangs on, and with it the query's and key's, which it is packed
    with; the MLP's second matrix comes next. These keep 8 bits, the latter in the layers where llama.cpp's
    Q4_K_M keeps more too: the first and last eighth, and every third between.
    """
    if precision == "int8":
        return 8
    if precision != "int4":
        return 0
    if site == "qkv":
        return 8
    eighth = num_layers // 8
    outer = layer < eighth or layer >= num_layers - eighth or (layer - eighth) % 3 == 2
    return 8 if site == "down" and outer else 4


def write_blocks(file: WeightsFile, name: str, blocks: Blocks) -> None:
    """Store a quantised matrix [out, in], under names that the functions below know."""
    rows = len(blocks.codes)
    file.write(f"{name}.codes", blocks.packed_codes())
    file.write_again(f"{name}.rows", of=f"{name}.codes", shape=(rows, blocks.codes.shape[1] * blocks.bits // 8))
    file.write(f"{name}.scales", blocks.scales)
    file.write(f"{name}.zero_points", blocks.packed_zero_points())


def is_quantised(file: WeightsFile, name: str) -> bool:
    """Whether a matrix is stored in blocks."""
    return f"{name}.codes" in file


def multiply(graph: Graph, file: WeightsFile, weight: str, x: str, *, name: str, bias: str = "") -> str:
    """x [.., in] times a layer's linear (+ bias): [.., out]."""
    if is_quantised(file, weight):
        return _multiply_blocks(graph, file, weight, x, name, bias)
    y = graph.op("MatMul", x, graph.weight(file[weight]), name=name)
    return graph.op("Add", y, graph.weight(file[bias]), name=f"{name}/bias") if bias else y


def multiply_transposed(graph: Graph, file: WeightsFile, weight: str, x: str, *, name: str) -> str:
    """x [n, in] times a matrix whose rows are looked up too, stored [out, in]: [n, out]."""
    if is_quantised(file, weight):
        return _multiply_blocks(graph, file, weight, x, name, "")
    return graph.op("Gemm", x, graph.weight(file[weight]), name=name, transB=1)


def gather_rows(graph: Graph, file: WeightsFile, weight: str, ids: str, *, name: str) -> str:
    """Rows of a matrix [out, in] that is stored as its rows: [.., in]."""
    if not is_quantised(file, weight):
        return graph.op("Gather", graph.weight(file[weight]), ids, name=name)
    return graph.op(
        "GatherBlockQuantized",
        graph.weight(file[f"{weight}.rows"]),
        ids,
        graph.weight(file[f"{weight}.scales"]),
        graph.weight(file[f"{weight}.zero_points"]),
        name=name,
        domain=MICROSOFT,
        bits=_bits(file, weight),
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


def _multiply_blocks(graph: Graph, file: WeightsFile, weight: str, x: str, name: str, bias: str) -> str:
    codes = file[f"{weight}.codes"]
    rows, num_blocks, _ = codes.dims
    inputs = [x, graph.weight(codes)]
    inputs += [graph.weight(file[f"{weight}.{part}"]) for part in ("scales", "zero_points")]
    if bias:
        inputs += ["", graph.weight(file[bias])]
    return graph.op(
        "MatMulNBits",
        *inputs,
        name=name,
        domain=MICROSOFT,
        K=num_blocks * BLOCK,
        N=rows,
        bits=_bits(file, weight),
        block_size=BLOCK,
        accuracy_level=_INT8_ARITHMETIC,
    )


def _bits(file: WeightsFile, weight: str) -> int:
    return int(file[f"{weight}.codes"].dims[2]) * 8 // BLOCK
