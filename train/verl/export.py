"""Write cases as verl reads them: train.parquet and val.parquet.

    python -m train.verl.export --grpo configs/qwen2.5-7b/grpo.toml --out artifacts/verl/data

Prompts state a thinking budget drawn at random, as in `train.grpo`, one a case. verl applies the
chat template itself; `TEMPLATE` is the one that ends in the opening of thinking, as
`curt.dialogue.Prompts` does, for `actor_rollout_ref.model.custom_chat_template`.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from curt.checkpoint import read_checkpoint
from curt.classifier.candidates import draw_candidates, load_prompts, read_candidates
from curt.config import Config, run
from curt.corpus.case import Case
from curt.corpus.store import find_cases, read_cases
from curt.dialogue import (
    CHAT_TEMPLATE,
    THINK_START,
)
from curt.files import whole_folder, write_parquet
from train.grpo import GRPOSettings, describe_start
from train.verl.group_scores import read_settings

logger = logging.getLogger(__name__)

DATA_SOURCE = "curt"
TEMPLATE = CHAT_TEMPLATE.replace("assistant\n{% endif %}", f"assistant\n{THINK_START}{{% endif %}}")


class VerlExportConfig(Config):
    """What to export and where."""

    grpo: Path = Path("configs/qwen2.5-7b/grpo.toml")
    """Configuration of `train.grpo`: model, corpus, budgets, prompts, seed."""
    corpus: Path | None = None
    """Folder of cases; the one that the configuration names when left out."""
    model: str | None = None
    """Folder or hub id of the tokenizer; the configuration's model when left out."""
    out: Path
    """Folder to write."""
    val_cases: int = 200
    """Cases of the dev set to validate on, each under the widest budget."""


def export(config: VerlExportConfig) -> None:
    """Write `train.parquet` and `val.parquet`."""
    settings = read_settings(config.grpo, {"guard": None})  # it has no part in the prompts
    changes = {"corpus": config.corpus, "model": config.model}
    settings = settings.model_copy(update={k: v for k, v in changes.items() if v is not None})
    checkpoint = read_checkpoint(settings.model)
    start = describe_start(settings, checkpoint.manifest)
    prompts = load_prompts(
        settings.model, checkpoint.tokenizer, start["max_fact_tokens"], start["prompt_version"]
    )
    known = read_candidates(settings.candidates)
    rng = random.Random(settings.seed)
    cases = list(read_cases(find_cases(settings.corpus, "train")))
    rng.shuffle(cases)
    val = list(read_cases(find_cases(settings.corpus, "dev"), config.val_cases))
    with whole_folder(config.out) as folder:
        for split, drawn, budgets, share in (
            ("train", cases, draw_budgets(settings, len(cases)), settings.candidates_share),
            ("val", val, repeat(max(settings.budgets), len(val)), 1.0),
        ):
            rows = [
                make_row(
                    case,
                    index,
                    split,
                    budget,
                    prompts.messages(
                        case.fact,
                        budget,
                        draw_candidates(rng, prompts, case.id, known, share),
                    ),
                )
                for index, (case, budget) in enumerate(zip(drawn, budgets, strict=True))
            ]
            table = pa.Table.from_pylist(rows)
            write_parquet(folder / f"{split}.parquet", table)
            logger.info("%d cases in %s", table.num_rows, config.out / f"{split}.parquet")


def draw_budgets(settings: GRPOSettings, count: int) -> Iterator[int]:
    """A budget for each of so many cases; `prompts` of them, in their order, count as a step."""
    rng = random.Random(settings.seed)
    for index in range(count):
        yield settings.draw_budget(rng, min(index // settings.prompts, settings.steps - 1))


def make_row(
    case: Case, index: int, split: str, budget: int, messages: list[dict[str, str]]
) -> dict[str, Any]:
    """A case under a budget, in the columns that verl reads."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": messages,
        "ability": "law",
        "reward_model": {
            "style": "rule",
            "ground_truth": json.dumps(case.verdict.to_json(), ensure_ascii=False),
        },
        "extra_info": {"index": index, "split": split, "budget": budget, "case_id": case.id},
    }


if __name__ == "__main__":
    run(VerlExportConfig, export)
