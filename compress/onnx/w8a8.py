"""Eight bits for activations as well: products that a CPU computes in its integer units.

A weight-only format saves bytes, and with them the time of a model that waits for its memory. A
model that lies in the cache waits for its arithmetic instead, and there the kernels of blockwise
int4 and int8 weights are no faster than float32. With one scale a column of the weights and one a
tensor of the activations, found as they come (ONNX Runtime's dynamic quantisation), a product is
one integer product.

Weights keep seven of their eight bits: the integer units of older x86 CPUs add two products up in
sixteen, which eight would overflow without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

INTEGER_PRODUCT = "MatMulInteger"
"""The operator that an exported graph holds; a session fuses it with what stands around it."""


def quantise_activations(model: Path) -> None:
    """Replace the products of a float32 graph file with integer ones, in place.

    Weights that more than a product reads, such as embeddings, stay as they are for the others.
    Raises ValueError where the graph has no product with constant weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    products = [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    ]
    if not products:
        raise ValueError(f"{model} has no product to quantise: export it in fp32 first")
    beside = model.with_suffix(".onnx.data")
    beside.unlink(missing_ok=True)
    with _quietly():
        quantize_dynamic(
            proto,
            model,
            nodes_to_quantize=products,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """The quantiser tells the root logger of every tensor, and advises what was done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
