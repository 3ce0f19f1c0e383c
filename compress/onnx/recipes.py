"""The recipes of an ONNX Runtime export: one class each, listed in `RECIPES`, the default first.

`python -m compress.onnx.recipes` prints the names of those that a CPU serves, for the Makefile.

Which one: w8a8 is the fastest for a model that waits for arithmetic, as the demo's in the
processor's cache. A larger model waits for its memory instead when it writes: there int4 has half
the bytes, and `compress.onnx.fastest` tells which is faster; on CUDA only int4 runs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from compress.onnx.gptq import QuantisedWeight

Device = Literal["cpu", "cuda"]
Shape = Mapping[str, Any]  # a model folder's config.json

BLOCK_SIZES = (16, 32, 64, 128, 256)
INTEGER_PRODUCT = "MatMulInteger"
"""The operator of an exported w8a8 graph; a session fuses it with what stands around it."""


@dataclass(frozen=True)
class Recipe:
    """What is asked of the model builder, what is done before and after, what a graph must hold."""

    device: Device = "cpu"
    block_size: int | None = None
    """Weights that share one scale; left out, the recipe's own."""
    fused: bool = True
    """Let attention normalise queries and keys by itself, which only CUDA kernels can."""

    precision: ClassVar[str]
    """Type of the weights, as the artifact's manifest gives it."""
    built_as: ClassVar[str]
    """The precision that the builder is asked for."""
    bits: ClassVar[int]
    """Of a weight on the disk, at most, while the export is made."""
    product: ClassVar[str] = "MatMul"
    """The operator of the graph's matrix products."""
    own_block_size: ClassVar[int | None] = None
    calibrates: ClassVar[bool] = False
    """Whether weights are prepared on calibration cases before the builder has them."""
    half_on_cuda: ClassVar[bool] = True
    """Whether activations are float16 on CUDA; on the CPU they are float32."""
    refused_on: ClassVar[Mapping[Device, str]] = {}
    """Devices that cannot run it, and why."""
    least_chance: ClassVar[float | None] = None
    """How likely right all guessed tokens of a pass must be to pay; None: the engine's default."""

    def __post_init__(self) -> None:
        """Fill in the recipe's own block size. Raises ValueError where blocks do not fit it."""
        if reason := self.refused_on.get(self.device):
            raise ValueError(f"{self.precision} on {self.device}: {reason}")
        if self.block_size is None:
            object.__setattr__(self, "block_size", self.own_block_size)
        elif self.own_block_size is None:
            raise ValueError(f"{self.precision} has no blocks of weights: leave block_size out")
        elif self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size {self.block_size}: use one of {BLOCK_SIZES}")

    def check_shape(self, shape: Shape) -> None:
        """Raise ValueError for a model that the builder would fail at or silently get wrong."""

    def builder_options(self) -> list[str]:
        """The builder's `--extra_options` that are the recipe's own."""
        return []

    def calibrate(
        self, model: Path, samples: Sequence[list[int]], folder: Path
    ) -> Mapping[str, QuantisedWeight]:
        """Write a copy of `model` into `folder` that the builder takes over as it is.

        Returns the weights that it rounded, for the check that they got into the graph.
        """
        raise NotImplementedError(f"{type(self).__name__} does not calibrate")

    def finish(self, graph: Path) -> None:
        """Change the graph file that the builder wrote, in place."""


class Blockwise(Recipe):
    """Base of the recipes whose weights share a scale by blocks; activations stay floats.

    Products are computed in int8 (`accuracy_level` 4) where the kernels can.
    """

    product = "MatMulNBits"
    own_block_size = 32
    algorithm: ClassVar[str] = "default"
    """How the builder rounds (`algo_config`); "_last" keeps the output layer at int8, "_mixed" the
    most sensitive layers too."""
    accuracy_level: ClassVar[int] = 4

    def check_shape(self, shape: Shape) -> None:
        """Every weight's input width must be a multiple of the block: the builder would pad it."""
        assert self.block_size is not None
        for name, width in input_widths(shape).items():
            if width % self.block_size:
                largest = max((b for b in (16, 32, 64, 128) if width % b == 0), default=None)
                remedy = f"use {largest}" if largest else "use fp32"
                raise ValueError(
                    f"{name} {width} is no multiple of block_size {self.block_size}: {remedy}"
                )

    def builder_options(self) -> list[str]:
        """Block, rounding and arithmetic; grids are centred on zero where the rounding can."""
        return [
            f"block_size={self.block_size}",
            f"accuracy_level={self.accuracy_level}",
            f"algo_config={self.algorithm}",
            "is_symmetric=true",
        ]


class Int4(Blockwise):
    """Four bits by GPTQ on the corpus's own prompts; the output layer at int8 by k-quant."""

    precision, built_as, bits = "int4", "int4", 4
    calibrates = True
    algorithm = "k_quant_last"  # what is left to the builder: the output layer

    def calibrate(
        self, model: Path, samples: Sequence[list[int]], folder: Path
    ) -> Mapping[str, QuantisedWeight]:
        """Round by GPTQ (`compress.onnx.gptq`) and write the checkpoint."""
        # Not above: the Makefile asks for the names before anything is installed.
        from compress.folders import load_model
        from compress.onnx.checkpoint import write_gptq_checkpoint
        from compress.onnx.gptq import quantise_model

        assert self.block_size is not None
        weights = quantise_model(load_model(model), samples, self.block_size)
        write_gptq_checkpoint(model, weights, folder)
        return weights


class KQuant(Blockwise):
    """Four bits without calibration: k-quant grids, the most sensitive layers at int8."""

    precision, built_as, bits = "int4", "int4", 4
    algorithm = "k_quant_mixed"

    def check_shape(self, shape: Shape) -> None:
        """An even number of blocks a row as well."""
        super().check_shape(shape)
        assert self.block_size is not None
        for name, width in input_widths(shape).items():
            # Zero points of four bits are packed in pairs, across the end of a row
            # (onnxruntime 1.31).
            if width // self.block_size % 2:
                smaller = self.block_size // 2
                remedy = f"block_size {smaller}" if smaller >= 16 else "precision int8"
                raise ValueError(
                    f"{name} {width} makes {width // self.block_size} blocks of "
                    f"{self.block_size}, an odd number, whose zero points the exporter can't "
                    f"pack: use {remedy} or precision int4"
                )


class Rtn(Blockwise):
    """The smallest: everything at four bits, rounded to nearest."""

    precision, built_as, bits = "int4", "int4", 4
    own_block_size = 64
    algorithm = "rtn"


class Int8(Blockwise):
    """Eight bits without calibration."""

    precision, built_as, bits = "int8", "int8", 8
    own_block_size = 64


class Fp32(Recipe):
    """Weights as they are, in float32."""

    precision, built_as, bits = "fp32", "fp32", 32
    half_on_cuda = False


class Fp16(Recipe):
    """Weights and activations in float16, for CUDA."""

    precision, built_as, bits = "fp16", "fp16", 16
    refused_on: ClassVar[Mapping[Device, str]] = {
        "cpu": "ONNX Runtime's CPU attention has no float16 kernel, and the graph built instead "
        "fails at the first decoded token; use fp32 or int8, or --device cuda"
    }


class W8A8(Recipe):
    """Eight bits for activations as well: products that a CPU computes in its integer units.

    A weight-only format saves bytes, and with them the time of a model that waits for its memory.
    A model that lies in the cache waits for its arithmetic instead, and there the kernels of
    blockwise int4 and int8 weights are no faster than float32. With one scale a column of the
    weights and one a tensor of the activations, found as they come (ONNX Runtime's dynamic
    quantisation), a product is one integer product. So that one scale suits all channels, the
    outlying ones are moved into the weights first (`compress.onnx.smooth`).
    """

    precision, built_as, bits = "w8a8", "fp32", 32
    product = INTEGER_PRODUCT
    calibrates = True
    refused_on: ClassVar[Mapping[Device, str]] = {
        "cuda": "ONNX Runtime has these integer products for the CPU only; use int8 or int4, or "
        "export to TensorRT-LLM in fp8"
    }
    # a token more in a pass costs an eighth of a pass here, a third of one in the others
    least_chance = 0.25

    def calibrate(
        self, model: Path, samples: Sequence[list[int]], folder: Path
    ) -> Mapping[str, QuantisedWeight]:
        """Smooth the model; the builder rounds nothing that would have to be checked."""
        from compress.folders import load_model
        from compress.onnx.checkpoint import copy_settings
        from compress.onnx.smooth import smooth_model

        smoothed = load_model(model)
        smooth_model(smoothed, samples)
        copy_settings(model, folder)
        smoothed.save_pretrained(folder)
        return {}

    def finish(self, graph: Path) -> None:
        """Replace the float products with integer ones."""
        quantise_activations(graph)


RECIPES: Mapping[str, type[Recipe]] = {
    "w8a8": W8A8,
    "int4": Int4,
    "int8": Int8,
    "kquant": KQuant,
    "rtn": Rtn,
    "fp32": Fp32,
    "fp16": Fp16,
}
"""Every recipe by the name that `--precision` takes; the first is the default."""

DEFAULT_RECIPE = next(iter(RECIPES))


def input_widths(shape: Shape) -> dict[str, int]:
    """The input widths of a model's matrices, by name."""
    heads = shape["num_attention_heads"]
    return {
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "attention width": heads * (shape.get("head_dim") or shape["hidden_size"] // heads),
    }


def quantise_activations(graph: Path) -> None:
    """Replace the products of a float32 graph file with integer ones, in place.

    Weights keep seven of their eight bits: the integer units of older x86 CPUs add two products
    up in sixteen bits, which eight would overflow without a word. Weights that more than a product
    reads, such as embeddings, stay as they are for the others. Raises ValueError where the graph
    has no product with constant weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load(graph)
    weights = {tensor.name for tensor in proto.graph.initializer}
    products = [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    ]
    if not products:
        raise ValueError(f"{graph} has no product to quantise: export it in fp32 first")
    graph.with_suffix(".onnx.data").unlink(missing_ok=True)
    with _quiet_quantiser():
        quantize_dynamic(
            proto,
            graph,
            nodes_to_quantize=products,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Silence it: it logs every tensor to the root logger, and advises what was done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    served = [name for name, recipe in RECIPES.items() if "cpu" not in recipe.refused_on]
    sys.stdout.write(" ".join(served) + "\n")
