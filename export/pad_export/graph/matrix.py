"""A weight matrix in the graph: how each precision stores it, and the operators that multiply by it or read its rows.

fp32, fp16 and bf16 store it whole. int8 and int4 store blocks (see `pad_export.weights.blocks`). In the ort dialect
MatMulNBits
multiplies by them in int8 arithmetic, and GatherBlockQuantized reads rows of the same bytes: of an embedding, and
of an lm_head for the candidates. In the standard dialect the linears are signed 4-bit numbers under DequantizeLinear,
which TensorRT folds into its matrix products; embedding and lm_head stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from pad_export.graph.writer import MICROSOFT, GraphWriter, torch_type
from pad_export.weights.blocks import BLOCK_SIZE, Blocks
from pad_export.weights.file import WeightsFile
from pad_runtime.bundle.manifest import Activations, DialectName, FloatType, Precision
from pad_runtime.errors import OptionError

_INT8_ARITHMETIC = 4  # MatMulNBits' accuracy_level: activations are rounded to int8 in blocks too; 3 to 4 times as fast
_FLOAT_TYPES: dict[str, FloatType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Storage:
    """How the numbers of a bundle are stored.

    `float_type` is torch's and NumPy's name of what is not in blocks, activations and KV cache included. With
    `all_4_bits` no block has more than 4 bits.
    """

    precision: Precision
    dialect: DialectName
    float_type: FloatType
    all_4_bits: bool = False

    @property
    def in_blocks(self) -> bool:
        """Whether linears are stored in blocks."""
        return self.precision in ("int8", "int4")

    @property
    def symmetric(self) -> bool:
        """Whether blocks have their zero point in the middle."""
        return self.dialect == "standard"

    @property
    def embedding_bits(self) -> int:
        """Bits of the embedding, 0 if it is stored whole. A step only looks up rows, so that 8 bits cost no time."""
        if not self.in_blocks or self.dialect != "ort":
            return 0
        return 4 if self.all_4_bits else 8

    @property
    def lm_head_bits(self) -> int:
        """Bits of the base's lm_head, which every step streams: a fifth of all that a small model reads at int4."""
        return 4 if self.embedding_bits and self.precision == "int4" else self.embedding_bits

    def bits(self, site: str, layer: int, num_layers: int) -> int:
        """Bits of a layer's packed linear, 0 where it is stored whole.

        At int4 the values' projection is what perplexity hangs on, and with it the query's and key's, which it is
        packed with; the MLP's second matrix comes next. In the ort dialect these keep 8 bits, the latter in the layers
        where llama.cpp's Q4_K_M keeps more too: the first and last eighth, and every third between. TensorRT multiplies
        by blocks of 4 bits only.
        """
        if self.precision == "int8":
            return 8
        if self.precision != "int4":
            return 0
        if self.dialect == "standard" or self.all_4_bits:
            return 4
        if site == "qkv":
            return 8
        eighth = num_layers // 8
        outer = layer < eighth or layer >= num_layers - eighth or (layer - eighth) % 3 == 2
        return 8 if site == "down" and outer else 4


def choose_storage(
    precision: Precision, dialect: DialectName, activations: Activations | None = None, *, all_4_bits: bool = False
) -> Storage:
    """The storage of a precision; `activations` stand beside weights in blocks, and elsewhere are the precision itself.

    By default they are float32 in the ort dialect, for a CPU, and float16 in the standard one, for TensorRT's kernels.

    Raises:
        OptionError: activations, or all in 4 bits, conflict with the precision.
    """
    if all_4_bits and precision != "int4":
        raise OptionError(f"all_4_bits with --precision {precision}", expected="--precision int4 beside it")
    chosen: str = precision
    if precision in ("int8", "int4"):
        chosen = activations or ("fp32" if dialect == "ort" else "fp16")
    elif activations not in (None, precision):
        raise OptionError(
            f"--activations {activations} with --precision {precision}",
            expected="--precision int8 or int4 beside it",
            hint=f"pass --precision {activations}, or leave it out",
        )
    return Storage(precision, dialect, _FLOAT_TYPES[chosen], all_4_bits)


def write_blocks(file: WeightsFile, name: str, blocks: Blocks, storage: Storage) -> None:
    """Store a quantised matrix [out, in], under names that the functions below know."""
    rows, columns = blocks.codes.shape
    scales = blocks.scales.to(torch_type(storage.float_type))
    if storage.symmetric:
        file.write_int4(f"{name}.int4", blocks.packed_signed(), (columns, rows))
        file.write(f"{name}.scales", scales.T)
        return
    file.write(f"{name}.codes", blocks.packed_codes())
    file.write_again(f"{name}.rows", of=f"{name}.codes", shape=(rows, columns * blocks.bits // 8))
    file.write(f"{name}.scales", scales)
    file.write(f"{name}.zero_points", blocks.packed_zero_points())


def is_quantised(file: WeightsFile, name: str) -> bool:
    """Whether a matrix is stored in the blocks that ONNX Runtime's own operators read."""
    return f"{name}.codes" in file


def multiply(graph: GraphWriter, file: WeightsFile, weight: str, x: str, *, name: str, bias: str = "") -> str:
    """x [.., in] times a layer's linear (+ bias): [.., out]."""
    if is_quantised(file, weight):
        return _multiply_blocks(graph, file, weight, x, name, bias)
    y = graph.op("MatMul", x, _matrix(graph, file, weight, name), name=name)
    return graph.op("Add", y, graph.weight(file[bias]), name=f"{name}/bias") if bias else y


def _matrix(graph: GraphWriter, file: WeightsFile, weight: str, name: str) -> str:
    """A linear [in, out] as a value of the graph."""
    if f"{weight}.int4" not in file:
        return graph.weight(file[weight])
    parts = [graph.weight(file[f"{weight}.{part}"]) for part in ("int4", "scales")]
    return graph.op("DequantizeLinear", *parts, name=f"{name}/weight", axis=0, block_size=BLOCK_SIZE)


def multiply_transposed(graph: GraphWriter, file: WeightsFile, weight: str, x: str, *, name: str) -> str:
    """x [n, in] times a matrix whose rows are looked up too, stored [out, in]: [n, out]."""
    if is_quantised(file, weight):
        return _multiply_blocks(graph, file, weight, x, name, "")
    return graph.op("Gemm", x, graph.weight(file[weight]), name=name, transB=1)


def gather_rows(graph: GraphWriter, file: WeightsFile, weight: str, ids: str, *, name: str) -> str:
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
        block_size=BLOCK_SIZE,
        gather_axis=0,
        quantize_axis=1,
    )


def _multiply_blocks(graph: GraphWriter, file: WeightsFile, weight: str, x: str, name: str, bias: str) -> str:
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
        K=num_blocks * BLOCK_SIZE,
        N=rows,
        bits=_bits(file, weight),
        block_size=BLOCK_SIZE,
        accuracy_level=_INT8_ARITHMETIC,
    )


def _bits(file: WeightsFile, weight: str) -> int:
    return int(file[f"{weight}.codes"].dims[2]) * 8 // BLOCK_SIZE
