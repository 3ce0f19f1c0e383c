"""Warm start: teach a model the answer grammar and reasoning at several lengths.

    python -m train.sft @configs/demo/sft.toml
    python -m train.sft @configs/real/sft.toml --model path/or/hub-id
    accelerate launch --config_file configs/accelerate/ddp.yaml -m train.sft @configs/x/sft.toml

Without `--model` a tokenizer and a small Qwen3-architecture model are made from scratch. With
`--dataset` it learns completions as they are, of a view or of feedback. Stop with Ctrl-C at any
time; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from curt.artifact import MANIFEST, parent_of
from curt.checkpoint import SCRATCH, Checkpoint, check_rate, read_checkpoint
from curt.classifier.candidates import load_prompts, load_reader, read_candidates
from curt.config import Config, run
from curt.corpus.case import OWN
from curt.corpus.generate.generator import VERBOSITIES
from curt.corpus.store import find_cases, read_cases
from curt.dialogue import GRAMMAR_VERSION, PROMPT_VERSION, Prompts
from curt.hardware import choose_bf16
from train.runs.checkpoints import last_checkpoint, open_run, share_random_state
from train.runs.lora import (
    Lora,
    Rows,
    adapter_config,
    check_adapters,
    forget_source,
    load_base,
    marks_to_train,
)
from train.runs.shares import cut_batch
from train.warm_start.scratch import ModelSize

logger = logging.getLogger(__name__)


class SFTConfig(Config):
    """Warm-start settings."""

    corpus: Path = Path("artifacts/demo/corpus")
    """Folder with the training cases, train.jsonl or train.parquet."""
    dataset: Path | None = None
    """Rows of `prompt` and `completion` to learn as they are, in place of the cases: a view `best`
    or `shortest` of `train.data.views`, or sft.jsonl of `train.data.feedback`."""
    out: Path = Path("artifacts/demo/warm-start")
    """Model folder to write."""
    model: str | None = None
    """Hub id, folder or GGUF file to start from (`curt.checkpoint`); from scratch without."""
    shape: ModelSize = ModelSize()
    """Size of the model from scratch."""
    cases: int | None = None
    """Use only so many training cases."""
    per_case: int = 4
    """Branches of each case, each with its own verbosity and stated budget."""
    verbosity_weights: dict[str, float] = {"none": 1.0}
    """How often each verbosity is drawn; see `train.warm_start.examples`."""
    fitted_share: float = Field(0.0, ge=0, le=1)
    """Share of the branches whose stated budget is drawn first, and then the fullest reasoning that
    fits it, in place of a budget that fits the reasoning: a budget comes to mean something."""
    drills: int = 0
    """Steps of the generator's arithmetic added to each case; for generated cases."""
    clipped_share: float = Field(0.0, ge=0, le=1)
    """Share of the cases with a line of candidates that tell the first words of their facts only;
    for generated cases, whose lines hold what a verdict needs."""
    reader: Path | None = None
    """Folder of `compress.classifier.train`, a copy of which goes into the model folder: the
    classifier's candidates stand in every prompt. Without it, that of `model`."""
    candidates: Path | None = None
    """Cross-fitted candidates of the training cases, of `compress.classifier.train`; the reader's
    own for cases without."""
    candidates_share: float = Field(0.85, ge=0, le=1)
    """Share of the cases that have a line of candidates, where there is a reader."""
    tell_grammar: bool = False
    """Tell the answer grammar in every prompt, as to a model that was not trained on it."""
    max_fact_tokens: int = 256
    """Longer facts become excerpts."""
    max_thinking_tokens: int = 128
    """Largest thinking budget the model learns."""
    fact_weight: float = Field(0.0, ge=0)
    """Weight of the loss on the prompts' own tokens beside that on completions. Facts repeat
    names and figures, so a model from scratch learns to copy from them too."""
    fact_share: float = Field(1.0, gt=0, le=1)
    """Share of the prompts' tokens, drawn for each step, that `fact_weight` counts."""
    epochs: float = 1.0
    batch: int = 10
    """Cases a step over all processes, each with `per_case` branches."""
    micro_batch: int | None = Field(None, ge=1)
    """Cases a process puts through one pass, at most; all at once without."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third slower."""
    lora: Lora | None = None
    """Train low-rank adapters in place of all weights of `model`: {} for the defaults of
    `train.runs.lora`."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of AdamW. By default 2e-3 from scratch, 1e-5 for a pretrained `model`, and ten
    times that for its adapters."""
    muon_rate: float | None = None
    """Peak rate of Muon on hidden matrices (`warm_start.optimizer`); AdamW for all without it. For
    models that were trained from scratch here."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises."""
    decay: float = 0.25
    """Share of the steps, at the end, over which the rate falls to 0."""
    bf16: bool = True
    """bf16 autocast: several times faster on GPUs and on processors with AMX or AVX-512 BF16. On
    others it is left."""
    checkpoint_steps: int = 200
    seed: int = 7

    @field_validator("verbosity_weights")
    @classmethod
    def _known_verbosities(cls, weights: dict[str, float]) -> dict[str, float]:
        known = {*VERBOSITIES, OWN, "none", "cut"}
        if unknown := sorted(weights.keys() - known):
            raise ValueError(f"unknown verbosities {unknown}: use some of {sorted(known)}")
        return weights

    @model_validator(mode="after")
    def _have_a_base(self) -> SFTConfig:
        if self.lora and (self.model is None or self.muon_rate):
            raise ValueError("lora trains adapters of a given model with AdamW: "
                             "set model, and leave muon_rate out")  # fmt: skip
        if self.dataset and self.model is None:
            raise ValueError("dataset holds a model's prompts: set model to the one they are for")
        return self

    def choose_rate(self, checkpoint: Checkpoint | None) -> float:
        """The learning rate for what training starts from.

        Raises ValueError for one, or for Muon, that would ruin pretrained weights.
        """
        if checkpoint is None or not checkpoint.is_pretrained:
            return self.learning_rate or 2e-3
        if self.muon_rate:
            raise ValueError(
                f"muon_rate is for models from scratch, and ruins the pretrained weights of "
                f"{checkpoint.source.name}: leave it out, as configs/real/ does"
            )
        rate = self.learning_rate or (1e-4 if self.lora else 1e-5)
        check_rate(checkpoint, rate, adapters=self.lora is not None)
        return rate

    def cut_step(self, processes: int) -> tuple[int, int]:
        """Cases of one pass and passes of one step, for each process; see `cut_batch`."""
        return cut_batch(
            self.batch, 1, processes=processes, micro_batch=self.micro_batch, what="batch"
        )


def train_warm_start(
    config: SFTConfig, manifest: Mapping[str, Any] | None = None, run: Path | None = None
) -> None:
    """Train as configured and write the model folder. Resumes an interrupted run.

    A round of `train.raft` has some fields of its own in `manifest`, and its run lies beside `run`.
    """
    import torch
    from transformers import PrinterCallback, TrainingArguments, set_seed

    from train.branches import can_pack
    from train.runs.processes import SHARDED, ask_main, join_processes, leave
    from train.runs.progress import ProgressBar, StopCleanly
    from train.runs.weights import write_model
    from train.warm_start.cpu import keep_freed_memory
    from train.warm_start.examples import build_examples, read_examples
    from train.warm_start.loss import BranchCollator, BranchTrainer, ExampleDataset, history_rows
    from train.warm_start.optimizer import MuonWithAdamW
    from train.warm_start.scratch import build_model
    from train.warm_start.tokenizer import corpus_texts, train_tokenizer

    started = time.monotonic()
    processes = join_processes()
    settings = config.model_dump(mode="json")
    source = config.dataset or find_cases(config.corpus, "train")
    inputs = {"train": source}
    cases = [] if config.dataset else list(read_cases(source, config.cases))
    if not cases and not config.dataset:
        raise ValueError(f"{config.corpus} holds no training case: build the corpus again")
    if config.reader:
        inputs["reader"] = config.reader / MANIFEST
    one_pass, passes = config.cut_step(processes.num_processes)
    checkpoint = read_checkpoint(config.model) if config.model else None
    rate = config.choose_rate(checkpoint)
    version = GRAMMAR_VERSION if config.tell_grammar else PROMPT_VERSION
    if checkpoint:
        check_adapters(config.lora, checkpoint)
        checkpoint.check_servable(
            config.max_fact_tokens, config.max_thinking_tokens, version, reader=bool(config.reader)
        )
        if checkpoint.manifest:
            inputs["model"] = Path(checkpoint.source.path) / MANIFEST
        checkpoint.say_changes()
    run_dir = ask_main(lambda: open_run(run or config.out, settings, inputs))
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=one_pass,
        gradient_accumulation_steps=passes,
        gradient_checkpointing=config.gradient_checkpointing,
        ddp_find_unused_parameters=False,  # every pass uses all weights
        learning_rate=rate,
        warmup_steps=config.warmup,
        # A high rate for long: reading circumstances comes late and at once, or not at all
        # when the rate has fallen by then. The decay at the end settles the rest.
        lr_scheduler_type="warmup_stable_decay",
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=choose_bf16(config.bf16),
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    if config.muon_rate and arguments.distributed_state.distributed_type in SHARDED:
        raise ValueError("muon_rate needs whole matrices: leave it out, or launch with DDP")
    set_seed(config.seed)
    if checkpoint is None:
        logger.info("training a tokenizer on %d cases", len(cases))
        # Once: processes whose tokens differ would train on nonsense.
        tokenizer = ask_main(lambda: train_tokenizer(corpus_texts(cases), config.shape.vocab))
        model = build_model(config.shape, tokenizer)
    else:
        tokenizer, model = checkpoint.tokenizer, load_base(checkpoint, config.lora)
    # Parts of a sharded model can't be tried: it is taken for one that packs.
    packs = arguments.distributed_state.distributed_type in SHARDED or can_pack(model)
    if not packs:
        logger.info("%s can't read branches in one row: each is computed alone", config.model)
    marks: Rows = {}
    if config.lora:
        from peft import get_peft_model

        if arguments.distributed_state.distributed_type not in SHARDED:
            marks = marks_to_train(model, tokenizer, config.lora)
        model = get_peft_model(model, adapter_config(config.lora, marks))
        forget_source(model)
        if config.gradient_checkpointing:
            model.enable_input_require_grads()  # or nothing before the first adapter has gradients
    if config.reader:
        reader = load_reader(config.reader)
        prompts = Prompts(tokenizer, config.max_fact_tokens, reader, version)
    else:
        prompts = load_prompts(config.model or "", tokenizer, config.max_fact_tokens, version)
    if config.dataset:
        examples = read_examples(config.dataset, tokenizer)
    else:
        examples = build_examples(
            cases,
            tokenizer,
            prompts,
            verbosity_weights=config.verbosity_weights,
            per_case=config.per_case,
            max_thinking_tokens=config.max_thinking_tokens,
            seed=config.seed,
            drills=config.drills,
            clipped_share=config.clipped_share,
            fitted_share=config.fitted_share,
            candidates=read_candidates(config.candidates),
            candidates_share=config.candidates_share,
        )
    logger.info("%d cases, %.1f M parameters", len(examples), model.num_parameters() / 1e6)
    steps = math.ceil(math.ceil(len(examples) / config.batch) * config.epochs)
    stop = StopCleanly()
    optimizer = (
        MuonWithAdamW(model, muon_lr=config.muon_rate, adamw_lr=rate) if config.muon_rate else None
    )
    arguments.lr_scheduler_kwargs = {"num_decay_steps": int(config.decay * steps)}
    arguments.logging_steps = min(20, max(1, steps // 5))
    trainer = BranchTrainer(
        model=model,
        args=arguments,
        train_dataset=ExampleDataset(examples),
        data_collator=BranchCollator(
            tokenizer.pad_token_id, config.fact_share if config.fact_weight else 0.0, packs
        ),
        callbacks=[stop, ProgressBar((manifest or {}).get("stage", "warm start"))],
        optimizers=(optimizer, None),
    )
    trainer.fact_weight = config.fact_weight
    trainer.remove_callback(PrinterCallback)
    whole = arguments.distributed_state.distributed_type not in SHARDED
    if arguments.use_cpu and whole and not config.gradient_checkpointing:
        keep_freed_memory()
        if packs and model.config._attn_implementation == "sdpa":  # it builds no other masks
            model.set_attn_implementation("products")
        trainer.bf16_weights = arguments.bf16
    resume = ask_main(lambda: last_checkpoint(run_dir))
    if resume:
        logger.info("resuming from %s", resume)
        ask_main(lambda: share_random_state(resume, processes.num_processes))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    processes.wait_for_everyone()  # a process that ends early has the launcher end the others
    if stop.stopped:
        leave("stopped; the same command goes on from here")
    describe: dict[str, Any] = {
        "format": "hf",
        "stage": "warm-start",
        "base": config.model or SCRATCH,
        "prompt_version": version,
        "max_fact_tokens": config.max_fact_tokens,
        "max_thinking_tokens": config.max_thinking_tokens,
        "config": settings,
    }
    if config.model and checkpoint and checkpoint.manifest:
        describe["base"] = checkpoint.manifest.base
        describe["parent"] = parent_of(Path(config.model))
    describe |= manifest or {}
    history = history_rows(trainer.state.log_history)
    write_model(
        trainer, tokenizer, config.out, describe,
        run=run_dir, source=config.model, lora=config.lora, rows=marks, history=history,
        reader=config.reader,
    )  # fmt: skip
    logger.info("warm start in %s after %.0f s", config.out, time.monotonic() - started)


if __name__ == "__main__":
    run(SFTConfig, train_warm_start)
