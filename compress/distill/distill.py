"""Teach a small model to answer as a large one does: distillation, and recovery after pruning.

    python -m compress.distill --teacher artifacts/demo/grpo-default --shape.layers 2 \
        --data artifacts/demo/corpus/train.jsonl --out artifacts/demo/student --steps 400
    python -m compress.distill --teacher DIR --student PRUNED --data best.parquet --out DIR

The student is a folder, or the teacher with fewer layers (copied evenly) or smaller widths (random
weights). The data are cases with reasonings, or a view of logged completions (`train.data.views`).
Stop with Ctrl-C, or kill -9, at any time: the same command goes on from the last checkpoint, bit
for bit on one machine. With other settings it sets the unfinished run aside and says so.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from compress.distill.examples import TokenisedExample, batch_order, read_examples, split_examples
from compress.distill.loss import TERMS, LossSettings, Models, draw_mix
from compress.distill.student import StudentShape, check_vocabulary, make_student
from compress.folders import describe_child, load_model
from curt.artifact import load_manifest, parent_of, write_artifact
from curt.classifier.candidates import load_prompts, read_candidates
from curt.config import Config
from curt.corpus.generate.generator import VERBOSITIES
from curt.corpus.thinking import CUT, NONE
from curt.files import close_run, sha256, whole_folder, write_json
from curt.hardware import choose_bf16

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

STAGE = "distill"
STATE, SEAL = "state.pt", "checkpoint.json"
KEPT_CHECKPOINTS = 2
LAST_STEPS = 20  # over which the final training losses are averaged


class DistillConfig(Config):
    """Settings of `python -m compress.distill`."""

    teacher: Path
    """A Hugging Face model folder of this project."""
    student: Path | None = None
    """Such a folder to go on from, a pruned one for instance; "none": made by `shape`."""
    shape: StudentShape = StudentShape()
    """Size of a student made from the teacher."""
    data: Path
    """Cases (.jsonl), or a view of completions (.jsonl, .parquet)."""
    out: Path
    """Model folder to write; checkpoints lie beside it in <out>.run."""
    loss: LossSettings = LossSettings()
    """What is learned; see `compress.distill.loss`."""
    verbosity_weights: dict[str, float] = Field(
        default_factory=lambda: {n: float(n != "gap") for n in (*VERBOSITIES, NONE, CUT)}
    )
    """Of cases: how often each reasoning, none, or one cut at its budget is drawn; all alike, save
    "gap", which lacks a step."""
    per_case: int = Field(1, ge=1)
    """Draws of each case."""
    candidates: Path | None = None
    """Cross-fitted candidates of the cases, of `compress.classifier.train`."""
    candidates_share: float = Field(0.85, ge=0, le=1)
    """Share of the draws that have a line of candidates, where the model has a reader."""
    held_out: int = Field(16, ge=0)
    """Cases, or prompts of a view, that are only measured, before and after."""
    steps: int = Field(400, ge=1)
    batch: int = Field(8, ge=1)
    """Examples a step."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak rate of AdamW; falls to 0 on a cosine."""
    warmup: int = Field(20, ge=0)
    """Steps of linear rise to the peak."""
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    bf16: bool = False
    """Autocast to bfloat16: faster on GPUs and on processors with AMX or AVX-512 BF16. On others it
    is left."""
    checkpoint_steps: int = Field(100, ge=1)
    seed: int = 7

    @field_validator("student", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("verbosity_weights")
    @classmethod
    def _known_verbosities(cls, weights: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(weights.keys() - {*VERBOSITIES, NONE, CUT}):
            raise ValueError(f"unknown {unknown}: use some of {(*VERBOSITIES, NONE, CUT)}")
        return weights

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        if (self.student is None) == (not self.shape.changes):
            raise ValueError("give --student FOLDER, or --student none with a --shape, not both")
        if self.out.resolve() in {p.resolve() for p in (self.teacher, self.student) if p}:
            raise ValueError(f"out {self.out} is the teacher or the student: give another folder")
        if self.loss.mixup_alpha and self.batch < 2:
            raise ValueError("MixUp mixes the examples of a batch: give a batch of 2 or more")
        return self


def distill(config: DistillConfig) -> None:
    """Train as configured and write the model folder. Resumes an interrupted run.

    Raises ArtifactError when a model folder must not be loaded, ValueError when the data, the
    shape or the vocabularies do not fit, the loss diverges, or a checkpoint is damaged.
    """
    import torch
    from tqdm import tqdm
    from transformers import AutoTokenizer

    started = time.monotonic()
    origin = config.student or config.teacher
    limits = [load_manifest(folder, expect="hf") for folder in (config.teacher, origin)]
    tokenizer = AutoTokenizer.from_pretrained(config.teacher)
    teacher = load_model(config.teacher)
    if config.student is None:
        student = make_student(teacher, config.shape, config.seed)
    else:
        student = load_model(config.student)
        check_vocabulary(tokenizer.get_vocab(), AutoTokenizer.from_pretrained(config.student))
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"vocabularies differ: {student.config.vocab_size} of the student, "
            f"{teacher.config.vocab_size} of the teacher: leave the embeddings whole when pruning"
        )
    max_fact_tokens = min(m.max_fact_tokens for m in limits)
    max_thinking_tokens = min(m.max_thinking_tokens for m in limits)
    examples = read_examples(
        config.data,
        tokenizer,
        load_prompts(origin, tokenizer, max_fact_tokens),
        verbosity_weights=config.verbosity_weights,
        per_case=config.per_case,
        max_thinking_tokens=max_thinking_tokens,
        seed=config.seed,
        candidates=read_candidates(config.candidates),
        candidates_share=config.candidates_share,
    )
    context = min(m.config.max_position_embeddings for m in (teacher, student))
    training, held_out = split_examples(examples, config.held_out, context, config.seed)

    settings = config.model_dump(mode="json")
    settings["inputs"] = {
        "teacher": parent_of(config.teacher).manifest_sha256,
        "student": parent_of(origin).manifest_sha256,
        "data": sha256(config.data),
    }
    run = open_run(config.out, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher.to(device).requires_grad_(False)
    student.to(device).train()
    logger.info(
        "%d examples, %d held out; teacher %.1f M parameters, student %.1f M",
        len(training),
        len(held_out),
        teacher.num_parameters() / 1e6,
        student.num_parameters() / 1e6,
    )
    models = Models(student, teacher, tokenizer.pad_token_id, bf16=choose_bf16(config.bf16))
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=config.weight_decay)
    first, history, before = 0, [], {}
    if state := read_checkpoint(run, device):
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        first, history, before = state["step"], state["history"], state["before"]
        logger.info("resuming after step %d", first)
    elif held_out:
        before = models.measure(held_out)

    order = batch_order([len(e) for e in training], config.batch, config.seed)
    batches = itertools.islice(order, first, None)
    with tqdm(total=config.steps, initial=first, desc=STAGE, unit="step", mininterval=1) as bar:
        for step in range(first + 1, config.steps + 1):
            row = learn(models, [training[i] for i in next(batches)], optimizer, step, config)
            history.append(row)
            bar.update()
            bar.set_postfix({name: f"{row[name]:.3g}" for name in TERMS})
            if step % config.checkpoint_steps == 0 or step == config.steps:
                write_checkpoint(
                    run,
                    {
                        "step": step,
                        "student": student.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "history": history,
                        "before": before,
                    },
                )

    last = history[-LAST_STEPS:]
    evaluation = {f"train_{n}": sum(row[n] for row in last) / len(last) for n in TERMS}
    if held_out:
        evaluation |= {f"{name}_before": value for name, value in before.items()}
        evaluation |= models.measure(held_out)
    describe = describe_child(
        origin,
        limits[1],
        format="hf",
        precision="fp32",
        stage=STAGE,
        statute_version=limits[0].statute_version,
        max_fact_tokens=max_fact_tokens,
        max_thinking_tokens=max_thinking_tokens,
        config={**settings, "student_origin": student_origin(config)},
        evaluation=evaluation,
    )
    with write_artifact(config.out, describe) as folder:
        student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)
    close_run(run)
    logger.info(
        "student in %s after %.0f s: %s",
        config.out,
        time.monotonic() - started,
        json.dumps({name: round(value, 4) for name, value in evaluation.items()}),
    )


def student_origin(config: DistillConfig) -> str:
    """Where the first weights came from: "given" folder, "layers" of the teacher, or "random"."""
    if config.student is not None:
        return "given"
    return "layers" if config.shape.changes.keys() == {"num_hidden_layers"} else "random"


def learning_rate_at(step: int, steps: int, warmup: int, peak: float) -> float:
    """Rate of step 1..steps: a linear rise over `warmup` steps, then a cosine down to 0.

    Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1))) / 2


def learn(
    models: Models,
    examples: Sequence[TokenisedExample],
    optimizer: torch.optim.Optimizer,
    step: int,
    config: DistillConfig,
) -> dict[str, float]:
    """One update; returns its losses and rate. All chance in it follows from seed and step.

    Raises ValueError, before the weights are touched, when the loss or its gradient is not finite.
    """
    import torch

    torch.manual_seed(config.seed * 1_000_003 + step)  # dropout, where a model has it
    rng = random.Random(f"{config.seed}-{step}")
    rate = learning_rate_at(step, config.steps, config.warmup, config.learning_rate)
    mix = draw_mix(rng, len(examples), config.loss.mixup_alpha)
    losses = models.losses(examples, config.loss, mix)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(models.student.parameters(), config.max_grad_norm)
    if not (losses.total.isfinite() and norm.isfinite()):
        raise ValueError(
            f"step {step} has loss {losses.total.item()} and gradient norm {norm.item()}: "
            "take a lower --learning_rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {"step": step, **losses.to_row(), "learning_rate": rate}


def open_run(out: Path, settings: dict[str, Any]) -> Path:
    """The folder where the run that will produce `out` keeps its checkpoints.

    A run with other settings or inputs, or of another kind, is moved aside with a warning that
    names what changed; nothing is deleted but a save that was cut short. Raises ValueError when
    the record of an unfinished run can't be read.
    """
    run = out.with_name(f"{out.name}.run")
    recorded = run / "config.json"
    # Neither how often a run is saved nor how its folder is spelled changes what it makes.
    passing = ("checkpoint_steps", "out")
    config = {k: v for k, v in settings.items() if k not in passing} | {"stage": STAGE}
    if run.exists():
        try:
            previous = json.loads(recorded.read_bytes()) if recorded.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{recorded} is damaged: delete {run} to start anew") from error
        names = config.keys() | previous.keys()
        if changed := sorted(k for k in names if config.get(k) != previous.get(k)):
            number = 1
            while (kept := run.with_name(f"{run.name}.{number}")).exists():
                number += 1
            run.rename(kept)
            logger.warning(
                "starting anew: the run there was made with other %s; it is kept in %s",
                ", ".join(changed),
                kept,
            )
    if not run.exists():
        write_json(recorded, config)
    for unfinished in run.glob(".checkpoint-*"):
        shutil.rmtree(unfinished)
    return run


def write_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Save the state after a step, whole or not at all, and drop all but the newest two."""
    import torch

    with whole_folder(run / f"checkpoint-{state['step']:08d}") as folder:
        torch.save(state, folder / STATE)
        write_json(folder / SEAL, {"sha256": sha256(folder / STATE)})
    for old in sorted(run.glob("checkpoint-*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)
    logger.info("checkpoint after step %d", state["step"])


def read_checkpoint(run: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest state of a run, or None. Raises ValueError when its checkpoint is damaged."""
    import torch

    found = sorted(run.glob("checkpoint-*"))
    if not found:
        return None
    folder = found[-1]
    try:
        sealed = json.loads((folder / SEAL).read_bytes())["sha256"] == sha256(folder / STATE)
    except (OSError, ValueError, KeyError):
        sealed = False
    if not sealed:
        raise ValueError(
            f"{folder} is damaged: delete it to go on from the checkpoint before, or from the start"
        )
    state: dict[str, Any] = torch.load(folder / STATE, map_location=device, weights_only=True)
    return state
