"""GRPO with an explicit length penalty: shorter reasoning at no lower accuracy.

    python -m train.grpo @configs/demo/grpo.toml
    python -m train.grpo @configs/demo/grpo.toml --penalty '{"type": "kimi"}' --out artifacts/x
    accelerate launch --config_file configs/accelerate/ddp.yaml -m train.grpo @configs/x/grpo.toml

Each prompt states a thinking budget drawn at random (LCPO), so that one model serves every
deadline. Every rollout is kept under `{out}.run/trajectories`. Stop with Ctrl-C at any time; the
same command goes on from the last checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from curt.artifact import MANIFEST, Manifest, parent_of
from curt.checkpoint import Checkpoint, check_rate, read_checkpoint
from curt.classifier.candidates import draw_candidates, load_prompts, read_candidates
from curt.config import Config, run
from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import find_cases, read_cases
from curt.dialogue import (
    GRAMMAR_VERSION,
    MAX_ANSWER_TOKENS,
    PROMPT_VERSION,
    THINK_END,
    Prompts,
    encode,
)
from curt.hardware import choose_bf16
from train.judge import JudgeSettings, JudgeUnavailableError, make_judge
from train.loop.advantages import Estimator
from train.loop.curriculum import Curriculum, Levels, draw_budget
from train.loop.guard import AccuracyGuard
from train.loop.scoring import check_weights
from train.penalties import Penalty
from train.penalties.group.kimi import KimiPenalty
from train.rewards.score import Combination, Correctness
from train.runs.checkpoints import (
    checkpoint_step,
    last_checkpoint,
    open_run,
    run_folder,
    saved_processes,
)
from train.runs.lora import Lora, adapter_config, check_adapters, forget_source, load_base
from train.runs.shares import cut_batch

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

TRL_DEFAULTS = {
    # The last, small steps average out the noise of small batches.
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "gradient_checkpointing": False,
    "ddp_find_unused_parameters": False,  # every pass uses all weights
    "save_total_limit": 2,
    "logging_steps": 1,
    "disable_tqdm": True,
}

LAY_SHARE = 0.3  # of fresh cases, as of the demo's lessons


class RolloutSettings(Config):
    """Settings of what learns from its own completions: where it starts, and what it samples."""

    model: str = "artifacts/demo/warm-start"
    """Model folder to start from, or any other checkpoint: hub id, folder or GGUF file."""
    max_fact_tokens: int | None = None
    """Longer facts become excerpts. A model folder made here says so itself."""
    tell_grammar: bool | None = None
    """Tell the answer grammar in every prompt. By default as the model folder was trained, and to
    any other checkpoint."""
    corpus: Path = Path("artifacts/demo/corpus")
    """Folder with the training cases, train.jsonl or train.parquet, and `dev` to evaluate on."""
    fresh: bool = False
    """Cases of the generator in place of the corpus' own, each step's drawn anew, three in ten in
    plain words: they depend on the seed and the step alone, and no corpus has them."""
    candidates: Path | None = None
    """Cross-fitted candidates of the cases, of `compress.classifier.train`; the reader's own for
    cases without."""
    candidates_share: float = Field(0.85, ge=0, le=1)
    """Share of the prompts that have a line of candidates, where the model has a reader."""
    out: Path = Path("artifacts/demo/grpo-default")
    """Model folder to write."""
    budgets: Levels = [16, 32, 64, 128]
    """Thinking budgets to state in prompts, drawn uniformly."""
    curriculum: Curriculum | None = None
    """Budgets that change over the run, in place of `budgets`: `train.loop.curriculum`."""
    steps: int = 100
    prompts: int = 8
    """Prompts a step, over all processes."""
    oversample: int = Field(0, ge=0)
    """Prompts sampled on top of `prompts` every step; GRPO trains on `prompts` that have a spread
    (dynamic sampling)."""
    generations: int = 8
    """Completions a prompt: the group."""
    max_thinking_tokens: int = 128
    learning_rate: float = 2e-4
    """Peak rate; falls to 0 over the run."""
    temperature: float = 1.0
    lora: Lora | None = None
    """Train low-rank adapters in place of all weights: {} for the defaults of `train.runs.lora`."""
    bf16: bool = False
    """bf16 autocast in training, where the hardware has such products."""
    checkpoint_steps: int = 25
    seed: int = 7

    def draw_budget(self, rng: random.Random, step: int) -> int:
        """The thinking budget that one prompt of a step, counted from 0, states."""
        if self.curriculum is None:
            return rng.choice(self.budgets)
        return draw_budget(rng, step, self.steps, self.curriculum)


class GRPOSettings(RolloutSettings):
    """GRPO settings."""

    penalty: Penalty = KimiPenalty()
    """Length penalty: {"type": "none" | "kimi" | "gr3" | ..., ...its constants}."""
    cost: Path | None = None
    """ONNX Runtime folder with guesses: the length that the penalty sees is not the tokens of a
    reasoning but the milliseconds it would take there, in tokens of the same average cost."""
    reward_weights: dict[str, Annotated[float, Field(ge=0)]] = {
        "format": 0.1,
        "charge": 0.3,
        "article": 0.2,
        "term": 0.4,
        "consistency": 0.0,
        "legality": 0.0,
        "repetition": 0.0,
    }
    """Weights of the partial rewards: names of `train.rewards`, or `judge:task` for a judge's.
    0 makes a reward a logged metric."""
    reward_combination: Combination = "mean"
    """How they become one: their weighted mean or sum, or the mean of their z-scores or ranks
    within the group."""
    judges: dict[str, JudgeSettings] = {}
    """Judges by a name of your choice: {"qwen": {"type": "endpoint", ...}}; see `train.judge`."""
    correctness: Correctness = "exact"
    """What counts as correct, and is penalised: `exact`, all or nothing, or `graded`."""
    partial_share: float = Field(0.4, ge=0, le=1)
    """Share of the total that partial rewards make up; the rest is penalised correctness."""
    advantages: Estimator | Literal["gdpo"] = "batch"
    """From rewards to advantages; see `train.loop.advantages`."""
    spread_floor: float = Field(0.0, ge=0)
    """A group whose rewards range over less teaches nothing."""
    right_boost: float = Field(0.0, ge=0)
    """Added to the advantages of right completions once they are scaled (DLER's code: 0.1)."""
    rounds: int = Field(1, ge=1)
    """Rounds of sampling a step, at most: while fewer than `prompts` groups have a spread, as many
    new prompts are sampled as in the first."""
    guard: AccuracyGuard | None = None
    """Ease the length penalty while accuracy is down: {} for the guard's defaults."""
    micro_batch: int | None = Field(None, ge=1)
    """Completions a process puts through one pass of the update, at most; all at once without.
    More than memory holds must be cut up; the step stays the same."""
    enforce_budgets: bool = False
    """End thinking where the stated budget is used up, as serving does, and have the answer written
    from there. Models whose own reasoning is longer would else be cut off without one."""
    compact: bool = False
    """Sample with `train.loop.sampler`, which drops finished rows: faster for small models whose
    whole weights sit on one device. Off: TRL's own generation."""
    seed_rollouts: bool = False
    """Every completion draws from a random stream of its own, set by the seed, the step and its
    place in the batch: the same run on any number of processes. Needs `compact`."""
    epsilon_high: float = 0.28
    """Upper clip of the policy ratio (DAPO); the lower one is 0.2."""
    kl: float = 0.0
    """Weight of the KL divergence to the starting model."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = ["tensorboard"]
    """Where else to send the metrics (TensorBoard: `{out}.run/runs`); the others need their
    package installed. The history is kept anyway."""
    trl: dict[str, Any] = {}
    """Further settings of TRL's GRPOConfig, by its names: {"use_vllm": true, ...}."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations on the corpus' `dev`, greedy, `max_thinking_tokens` stated and
    enforced; the weights of the best become the result. None: no evaluation, the last weights."""
    eval_cases: int = Field(200, ge=1)
    patience: int | None = Field(None, ge=1)
    """Evaluations in a row without gain that end the run."""
    stop_on_collapse: bool = False
    """End the run when `train.loop.watch` sees the policy collapse; otherwise it only warns."""

    @model_validator(mode="after")
    def _known_rewards(self) -> GRPOSettings:
        check_weights(self.reward_weights, self.judges.keys())
        return self

    @model_validator(mode="after")
    def _known_sampler(self) -> GRPOSettings:
        if self.seed_rollouts and not self.compact:
            raise ValueError("seed_rollouts without compact: only that sampler can be seeded so")
        if self.compact and self.trl.get("use_vllm"):
            raise ValueError("compact samples without vLLM: leave it or trl.use_vllm out")
        if (self.oversample or self.rounds > 1) and self.micro_batch:
            raise ValueError("oversample and rounds need whole batches: leave micro_batch out")
        return self

    def cut_step(self, processes: int) -> tuple[int, int]:
        """Completions of one pass and passes of one step, for each process; see `cut_batch`."""
        return cut_batch(
            self.prompts + self.oversample,
            self.generations,
            processes=processes,
            micro_batch=self.micro_batch,
            what="prompts + oversample",
        )


def train_grpo(config: GRPOSettings) -> None:
    """Train as configured and write the model folder. Resumes an interrupted run."""
    import torch
    from accelerate.utils import set_seed
    from transformers import PrinterCallback
    from trl import GRPOConfig

    from curt.engines.onnx.cost import read_cost
    from train.branches import can_pack
    from train.data.trajectories import TrajectoryWriter
    from train.loop.group_reward import GroupReward
    from train.loop.scoring import Scorer
    from train.loop.trainer import RecordingTrainer, evaluated_scores, resume_history
    from train.loop.watch import CollapseWatch
    from train.runs.processes import ask_main, join_processes, leave
    from train.runs.progress import ProgressBar, StopCleanly
    from train.runs.weights import write_model

    started = time.monotonic()
    processes = join_processes()
    checkpoint = read_checkpoint(config.model)
    if config.trl.get("use_vllm"):
        check_vllm(checkpoint)
    cost, priced = None, {}
    if config.cost:
        cost, priced = read_cost(config.cost), {"cost": config.cost / MANIFEST}
        if cost.tokenizer.vocabulary() != checkpoint.tokenizer.get_vocab():
            raise ValueError(f"{config.cost} has other tokens than {config.model}: export that one")
    options = trl_options(config, run_folder(config.out), processes.num_processes)
    start, run_dir = open_learner(config, checkpoint, **priced)
    # Before the model: under ZeRO-3 and FSDP it is loaded in parts.
    arguments = GRPOConfig(**options, use_cpu=not torch.cuda.is_available())
    tokenizer, model = checkpoint.tokenizer, load_base(checkpoint, config.lora)
    compact = config.compact and can_pack(model)
    if config.compact and not compact:
        logger.info("%s can't read branches in one row: TRL's own rollouts", config.model)
    resume = ask_main(lambda: last_checkpoint(run_dir))
    arguments.eval_on_start = config.eval_steps is not None and resume is None
    prompts = load_prompts(
        config.model, tokenizer, start["max_fact_tokens"], start["prompt_version"]
    )
    trajectories = run_dir / "trajectories"
    step = checkpoint_step(resume) if resume else 0
    reward = GroupReward(
        penalty=config.penalty,
        scorer=Scorer(
            config.reward_weights,
            {name: make_judge(judge) for name, judge in config.judges.items()},
            config.reward_combination,
            config.correctness,
        ),
        partial_share=config.partial_share,
        num_generations=config.generations,
        end_id=encode(tokenizer, THINK_END)[0],
        eos_ids=checkpoint.eos_ids,
        config_sha256=hashlib.sha256(
            json.dumps(start["config"], sort_keys=True).encode()
        ).hexdigest(),
        checkpoint_sha256=start["parent"].manifest_sha256 if "parent" in start else "",
        guard=config.guard,
        cost=cost,
        history=ask_main(lambda: resume_history(trajectories, step)),
    )
    stop = StopCleanly()
    watch = CollapseWatch(stop=config.stop_on_collapse)
    trainer = RecordingTrainer(
        settings=config,
        reward=reward,
        writer=TrajectoryWriter(trajectories),
        compact=compact,
        prompts=build_prompts(config, prompts, config.rounds),
        model=model,
        args=arguments,
        eval_dataset=build_evaluation(config, prompts) if config.eval_steps else None,
        processing_class=tokenizer,
        callbacks=[stop, watch, ProgressBar(f"GRPO, penalty {config.penalty.type}")],
        peft_config=adapter_config(config.lora) if config.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    if config.lora:
        forget_source(trainer.model)
    if resume:
        logger.info("resuming from %s", resume)
        if saved_processes(resume) != processes.num_processes:
            # Its random states don't fit: without new seeds, processes would draw again what they
            # drew in the first steps.
            set_seed(config.seed + step, device_specific=True)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    processes.wait_for_everyone()  # a process that ends early has the launcher end the others
    if watch.stopped:
        leave(f"stopped: {', '.join(watch.counts)}; the last checkpoint is in {run_dir}")
    if stop.stopped:
        leave("stopped; the same command goes on from here")
    if config.eval_steps:
        logger.info("the best was step %s", trainer.state.best_global_step)
        before, *scores = evaluated_scores(trainer.state.log_history)
        if max(scores, default=before) <= before:
            logger.warning(
                "no step was better on the development cases (%.4f) than the model it began "
                "with (%.4f): keep that one",
                max(scores, default=before),
                before,
            )
        trainer._load_best_model()
    describe = start | {"stage": f"grpo-{config.penalty.type}"}
    history = history_rows(trainer.state.log_history)
    write_model(
        trainer, tokenizer, config.out, describe,
        run=run_dir, source=config.model, lora=config.lora, history=history,
    )  # fmt: skip
    logger.info("GRPO model in %s after %.0f s", config.out, time.monotonic() - started)


def check_vllm(checkpoint: Checkpoint) -> None:
    """Raise ValueError where vLLM is not there, or would load another model than is trained."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "use_vllm needs vLLM beside TRL: install both as docs/training.md says, or set it to "
            "false"
        )
    checkpoint.check_as_it_is("vLLM")


def open_learner(
    config: RolloutSettings, checkpoint: Checkpoint, *, samples: bool = True, **inputs: Path
) -> tuple[dict[str, Any], Path]:
    """Manifest fields that follow from the settings and the start, and the run's folder.

    Without `samples` the run doesn't depend on the corpus; on `inputs`, by name, it does. Raises
    ValueError or ArtifactError when training so would ruin the model or make one that can't be
    served, before there is a folder.
    """
    from train.runs.processes import ask_main

    start = describe_start(config, checkpoint.manifest)
    check_adapters(config.lora, checkpoint)
    check_rate(checkpoint, config.learning_rate, adapters=config.lora is not None)
    thinking_tokens = config.max_thinking_tokens
    checkpoint.check_servable(start["max_fact_tokens"], thinking_tokens, start["prompt_version"])
    checkpoint.say_changes()
    splits = {"train": samples and not config.fresh, "dev": getattr(config, "eval_steps", None)}
    inputs |= {name: find_cases(config.corpus, name) for name, read in splits.items() if read}
    if "parent" in start:
        inputs["model"] = Path(config.model) / MANIFEST
    settings = config.model_dump(mode="json")
    run_dir = ask_main(lambda: open_run(config.out, settings, inputs))
    return start | {
        "format": "hf",
        "max_thinking_tokens": thinking_tokens,
        "config": settings,
    }, run_dir


def describe_start(config: RolloutSettings, manifest: Manifest | None) -> dict[str, Any]:
    """Manifest fields that follow from the model training starts from, a folder made here or not.

    Raises ValueError when another checkpoint comes without `max_fact_tokens`.
    """
    told = config.tell_grammar
    version = GRAMMAR_VERSION if told or told is None else PROMPT_VERSION
    if manifest:
        return {
            "prompt_version": manifest.prompt_version if told is None else version,
            "base": manifest.base,
            "parent": parent_of(Path(config.model)),
            "max_fact_tokens": config.max_fact_tokens or manifest.max_fact_tokens,
        }
    if config.max_fact_tokens is None:
        raise ValueError(
            f"{config.model} has no {MANIFEST}: set max_fact_tokens to start from a checkpoint "
            "that was not made here"
        )
    return {
        "base": config.model,
        "prompt_version": version,
        "max_fact_tokens": config.max_fact_tokens,
    }


def trl_options(config: GRPOSettings, run: Path, processes: int = 1) -> dict[str, Any]:
    """Arguments for TRL's GRPOConfig; `config.trl` adds to them.

    A step is the same on any number of processes: each takes an equal share of the groups. Raises
    ValueError when groups don't divide among processes, a share doesn't into passes, or
    `config.trl` names what is set from elsewhere.
    """
    one_pass, passes = config.cut_step(processes)
    ours = {
        "output_dir": str(run),
        "max_steps": config.steps,
        "per_device_train_batch_size": one_pass,
        "gradient_accumulation_steps": passes,
        "num_generations": config.generations,
        "max_completion_length": config.max_thinking_tokens + MAX_ANSWER_TOKENS,
        "temperature": config.temperature,
        "learning_rate": config.learning_rate,
        "beta": config.kl,
        "epsilon_high": config.epsilon_high,
        "scale_rewards": "none",  # `train.loop.advantages` scales
        "mask_truncated_completions": False,
        "shuffle_dataset": False,
        "bf16": choose_bf16(config.bf16),
        "save_steps": config.checkpoint_steps,
        "report_to": list(config.trackers) or "none",
        "seed": config.seed,
    }
    if config.eval_steps:
        ours |= {"eval_strategy": "steps", "eval_steps": config.eval_steps}
        ours |= {"metric_for_best_model": "eval_correct", "num_generations_eval": 1}
    sizes = {"steps_per_generation", "generation_batch_size"}
    if taken := sorted(config.trl.keys() & (ours.keys() | sizes)):
        raise ValueError(f"trl names {taken}: set these by their own fields of the configuration")
    return {**TRL_DEFAULTS, "loss_type": "dapo", **config.trl, **ours}


def build_prompts(config: RolloutSettings, prompts: Prompts, rounds: int = 1) -> Dataset:
    """One row a prompt, each with a stated budget drawn: all first rounds, then all second ones."""
    from datasets import Dataset

    rng = random.Random(config.seed)
    a_step = config.prompts + config.oversample
    wanted = config.steps * rounds * a_step
    if config.fresh:
        places = (divmod(n, config.steps) for n in range(rounds * config.steps))
        seeds = [f"fresh-{config.seed}-{step}-{number}" for number, step in places]
        lay = round(a_step * LAY_SHARE)
        drawn = []
        for seed in seeds:
            step = [
                *generate_cases(a_step - lay, seed), *generate_cases(lay, f"{seed}-lay", lay=True)
            ]  # fmt: skip
            drawn += random.Random(seed).sample(step, a_step)
    else:
        cases = list(read_cases(find_cases(config.corpus, "train")))
        drawn = rng.choices(cases, k=wanted) if wanted > len(cases) else rng.sample(cases, wanted)
    known = read_candidates(config.candidates)
    rows = []
    for index, case in enumerate(drawn):
        budget = config.draw_budget(rng, index // a_step % config.steps)
        candidates = draw_candidates(rng, prompts, case.id, known, config.candidates_share)
        rows.append(_row(prompts, case, budget, candidates))
    return Dataset.from_list(rows)


def build_evaluation(config: GRPOSettings, prompts: Prompts) -> Dataset:
    """One row a development case, under the widest budget. Raises ValueError without a case."""
    from datasets import Dataset

    cases = list(read_cases(find_cases(config.corpus, "dev"), config.eval_cases))
    if not cases:
        raise ValueError(f"{config.corpus} holds no case in dev: build it again, or no eval_steps")
    return Dataset.from_list([_row(prompts, c, config.max_thinking_tokens, None) for c in cases])


def _row(prompts: Prompts, case: Case, budget: int, candidates: str | None) -> dict[str, Any]:
    return {
        "prompt": prompts.text(case.fact, budget, candidates),
        "reference": json.dumps(case.verdict.to_json(), ensure_ascii=False),
        "budget": budget,
        "case_id": case.id,
    }


SHOWN = (
    "reward", "exact", "thinking_tokens", "within_budget", "entropy", "frac_reward_zero_std",
    "thinking_ms", "penalty_weight", "misranked", "thinking_tokens_right", "thinking_tokens_wrong",
    "thinking_cut", "eval_correct", "eval_exact", "eval_thinking_tokens",
)  # fmt: skip
RENAMED = {"learning_rate": "lr", "step_time": "seconds",
           "completions/mean_length": "completion_tokens"}  # fmt: skip


def history_rows(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Per-step metrics of a run, for the report; step 0 is an evaluation of the start."""
    rows: dict[int, dict[str, float]] = {}
    for row in log_history:
        if "reward" in row or "eval_exact" in row:
            shown = {k: row[k] for k in (*RENAMED, *SHOWN) if row.get(k) is not None}
            shown = {RENAMED.get(key, key): value for key, value in shown.items()}
            rows.setdefault(row["step"], {"step": row["step"]}).update(shown)
    return list(rows.values())


if __name__ == "__main__":
    run(GRPOSettings, train_grpo, expected=(JudgeUnavailableError, OSError, ValueError))
