"""Write a trained model, wherever its parts lie, as a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer

from curt.artifact import write_artifact
from curt.files import close_run, write_json
from train.runs.lora import Lora, Rows, merge_adapter
from train.runs.processes import SHARDED, ask_main


def write_model(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    describe: Mapping[str, Any],
    *,
    run: Path,
    source: str | None,
    lora: Lora | None,
    rows: Rows | None = None,
    history: list[dict[str, float]],
    reader: Path | None = None,
) -> None:
    """Write the trained model folder, adapters merged, and close its run; all processes call this.

    Args:
        trainer: its model is the one saved.
        tokenizer: saved beside it.
        out: the folder to write.
        describe: fields of its manifest, all but the precision.
        run: the run's own folder.
        source: the model that training started from; needed with adapters.
        lora: the adapters, if any.
        rows: what was trained beside them.
        history: per-step metrics, for the report.
        reader: the classifier folder to copy along; the parent's when left out.
    """
    accelerator = trainer.accelerator
    weights: dict[str, Any] | None = None  # None: whole in the model itself
    if accelerator.distributed_type in SHARDED:  # all processes must take part
        weights = accelerator.get_state_dict(trainer.model_wrapped)

    def write() -> None:
        model: Any = accelerator.unwrap_model(trainer.model)
        saved = None if lora else weights
        described = dict(describe)
        with write_artifact(out, described, reader=reader) as folder:
            if lora is not None:
                assert source is not None
                adapters = weights or model.state_dict()
                kept = folder / "adapter" if lora.keep else None
                model = merge_adapter(source, lora, adapters, kept, rows)
            described["precision"] = _precision_of(saved or model.state_dict())
            model.save_pretrained(folder, state_dict=saved)
            tokenizer.save_pretrained(folder)
            write_json(folder / "history.json", history)
        close_run(run)

    ask_main(write)


def _precision_of(weights: Mapping[str, Any]) -> str:
    """Precision of the weights, as manifests name it."""
    names = {str(t.dtype).removeprefix("torch.") for t in weights.values() if t.is_floating_point()}
    known = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    return "+".join(sorted(known.get(name, name) for name in names))
