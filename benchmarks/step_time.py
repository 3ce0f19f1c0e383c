"""A GRPO step of ours beside one of plain TRL: same model, prompts, settings and rewards.

    python -m benchmarks.step_time @configs/demo/grpo.toml --model artifacts/demo/warm-start

Rounds are interleaved, so that a busy machine slows all variants alike: only the ratios count.
Every variant starts from the same weights in every round. "trl" is TRL's own trainer with the same
rewards as a plain function, nothing recorded; "curt" adds the trajectory store, chosen advantages
and metrics; "curt, compact" also samples and computes log-probabilities our way.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from curt.config import load_config
from curt.files import write_json
from curt.logs import configure_logging
from train.grpo import GRPOSettings, build_prompts, describe_start, trl_options
from train.rollouts import make_trainer
from train.scoring import Scorer

VARIANTS = ("trl", "curt", "curt, compact")


class StepTimeConfig(GRPOSettings):
    """GRPO settings, and how long to measure."""

    rounds: int = 3
    measured_steps: int = 4
    """Steps a round; the first of them warms up and is left out."""
    report: Path = Path("benchmarks/step_time.json")
    """File of results."""


def main() -> None:
    """Measure and write the results; exits with a message on bad input."""
    config = load_config(StepTimeConfig)
    configure_logging()
    try:
        results = measure(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    logging.getLogger(__name__).info("%s: %s", config.report, results["ratio_to_trl"])


def measure(config: StepTimeConfig) -> dict[str, Any]:
    """Seconds a step by variant, and the ratio of TRL's median to each (above 1: faster)."""
    # Nothing sampled that is not trained on: plain TRL has no such choice.
    same = {"steps": config.measured_steps, "trackers": [], "oversample": 0}
    config = config.model_copy(update=same)
    start = describe_start(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    dataset = build_prompts(config, tokenizer, start["max_fact_tokens"])
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tqdm(total=config.rounds * len(VARIANTS), desc="step time", unit="run") as bar:
        for _ in range(config.rounds):
            for name in VARIANTS:
                with tempfile.TemporaryDirectory() as folder:
                    trainer = _trainer(
                        name, config, Path(folder), copy.deepcopy(base), tokenizer, dataset
                    )
                    seconds[name] += _step_seconds(trainer)
                bar.update()
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "completions_a_step": config.prompts * config.generations,
        "bf16": config.bf16,
        "seconds": seconds,
        "median_seconds": medians,
        "ratio_to_trl": {name: medians["trl"] / value for name, value in medians.items()},
    }


def _trainer(
    name: str, config: StepTimeConfig, run: Path, model: Any, tokenizer: Any, dataset: Any
) -> GRPOTrainer:
    options = trl_options(config, run) | {"save_strategy": "no"}
    arguments = GRPOConfig(**options, use_cpu=not torch.cuda.is_available())
    scorer = Scorer(config.reward_weights)
    if name == "trl":
        return GRPOTrainer(
            model=model,
            reward_funcs=_plain_reward(scorer),
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
        )
    return make_trainer(
        model=model,
        tokenizer=tokenizer,
        arguments=arguments,
        dataset=dataset,
        penalty=config.penalty,
        scorer=scorer,
        partial_share=config.partial_share,
        config_sha256="",
        checkpoint_sha256="",
        trajectories=run / "trajectories",
        resumed_step=0,
        compact=name == "curt, compact",
        estimator=config.advantages,
        spread_floor=config.spread_floor,
        trained_groups=config.prompts,
        guard=None,
        callbacks=[],
    )


def _plain_reward(scorer: Scorer) -> Any:
    from curt.dialogue import parse_completion
    from train.group_reward import read_verdict

    def reward(completions: list[str], reference: list[str], **_: Any) -> list[float]:
        parsed = [parse_completion(text) for text in completions]
        scores = scorer.score(parsed, [read_verdict(text) for text in reference], 1)
        return [score.exact for score in scores]

    return reward


def _step_seconds(trainer: GRPOTrainer) -> list[float]:
    """Wall seconds of every step after the first: sampling, scoring, update, bookkeeping."""
    clock = StepClock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds[1:]


class StepClock(TrainerCallback):
    """Times whole steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start of a step."""
        self.begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End of a step."""
        self.seconds.append(time.perf_counter() - self.begun)


if __name__ == "__main__":
    main()
