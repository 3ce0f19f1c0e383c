"""Let an exported graph tell its picks: the likeliest token after each of the last tokens fed.

    python -m compress.onnx.picks --artifact artifacts/demo/ort-int4 --out artifacts/demo/ort-picks

An export gives the logits of the last position alone, so an engine can't check several guessed
tokens in one pass. With this output it can (`curt.engines.onnx.speculation`): the output layer runs
over the last 16 tokens of a pass, the logits stay as they were, and only token ids come out beside
them.
A pass over one token does little more than before: an argmax, 4% on the demo model. How many of
the last tokens is an optional input of the graph, so that a prefill, which needs the last one's
pick alone, is spared the others.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from curt.artifact import MANIFEST, load_manifest, parent_of, write_artifact
from curt.config import Config, load_config
from curt.engines.onnx.graph import LIKELIEST, LIKELIEST_START, LIKELIEST_WINDOW

log = logging.getLogger(__name__)

_END = 2**31 - 1


class PicksConfig(Config):
    """Settings of `python -m compress.onnx.picks`."""

    artifact: Path
    """The ONNX Runtime model folder."""
    out: Path
    """The model folder to write."""


def add_picks(model: Path) -> None:
    """Add the output to a graph file in place; its weights, in a file beside it, stay as they are.

    Raises ValueError where the graph has it already, or is not one of an export that keeps the
    last position's logits in 32 bits.
    """
    proto = onnx.load(model, load_external_data=False)
    graph = proto.graph
    if any(output.name == LIKELIEST for output in graph.output):
        raise ValueError(f"{model} tells its picks already: use it as it is")
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    logits = next((output for output in graph.output if output.name == "logits"), None)
    if logits is None or logits.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ValueError(f"{model} has no 32-bit logits: export it for the CPU")

    last = next((node for node in graph.node if node.name == "/lm_head/prune/Gather"), None)
    unsqueeze = readers.get(last.output[0]) if last else None
    if last is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
        raise ValueError(f"{model} does not keep the last position alone: export it again")
    head = readers[unsqueeze.output[0]]
    place = list(graph.node).index(last)
    bounds = {
        LIKELIEST_START: -LIKELIEST_WINDOW,
        "picks/last": -1,
        "picks/end": _END,
        "picks/axis": 1,
    }
    for name, value in bounds.items():
        bound = helper.make_tensor(name, TensorProto.INT64, [1], [value])
        graph.initializer.append(bound)
    # an input with a default: who does not know it leaves it out
    graph.input.append(helper.make_tensor_value_info(LIKELIEST_START, TensorProto.INT64, [1]))
    some = helper.make_node(
        "Slice",
        [last.input[0], LIKELIEST_START, "picks/end", "picks/axis"],
        ["picks/hidden"],
        name="/picks/Slice",
    )
    head.input[list(head.input).index(unsqueeze.output[0])] = "picks/hidden"
    maker = makers["logits"]
    maker.output[list(maker.output).index("logits")] = "picks/logits"
    graph.node.remove(last)
    graph.node.remove(unsqueeze)
    graph.node.insert(place, some)
    graph.node.append(
        helper.make_node(
            "Slice",
            ["picks/logits", "picks/last", "picks/end", "picks/axis"],
            ["logits"],
            name="/picks/Last",
        )
    )
    graph.node.append(
        helper.make_node(
            "ArgMax", ["picks/logits"], [LIKELIEST], axis=-1, keepdims=0, name="/picks/ArgMax"
        )
    )
    graph.output.append(
        helper.make_tensor_value_info(LIKELIEST, TensorProto.INT64, ["batch_size", "picks_length"])
    )
    # shapes between the layers are no longer what was written down
    stale = [info for info in graph.value_info if info.name.startswith("/lm_head/")]
    for info in stale:
        graph.value_info.remove(info)
    onnx.save(proto, model)


def make_artifact(config: PicksConfig) -> None:
    """Write a copy of an artifact whose graph tells its picks.

    Raises ArtifactError when the artifact must not be loaded, ValueError as `add_picks`.
    """
    manifest = load_manifest(config.artifact, expect="ort-genai")
    describe = manifest.model_dump(exclude={"tools", "created", "files"}) | {
        "stage": "ort_picks",
        "parent": parent_of(config.artifact),
    }
    with write_artifact(config.out, describe) as folder:
        for name in manifest.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(config.artifact / name, target)
        add_picks(folder / "model.onnx")
    log.info("%s is ready (%s)", config.out, MANIFEST)


def main(argv: list[str] | None = None) -> None:
    """Write the artifact; exits with a message on bad input."""
    config = load_config(PicksConfig, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        make_artifact(config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
