"""Give an exported folder a table of what its model is used to writing.

    python -m compress.onnx.guesses --artifact artifacts/demo/ort-int4 --out artifacts/demo/ort-int4

The engine completes training cases, and what came after what in its own completions becomes
`guesses.json` in the folder: tokens the engine feeds along and keeps where the model picks the
same (`curt.engines.onnx.speculation`). The graph and its weights stay as they are, and so do texts
(in w8a8 but for close choices: activations of one pass share a scale).
A folder may be its own `out`; the older one stays until the new one is whole.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from compress.onnx.recipes import RECIPES
from curt.artifact import load_manifest, write_artifact
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.dialogue import BUDGET_LEVELS, THINK_END
from curt.engines.onnx.engine import OrtEngine
from curt.engines.onnx.speculation import GUESSES, LEAST_CHANCE, LONGEST_HABIT_KEY, Key
from curt.engines.protocol import Request
from curt.files import write_atomic

log = logging.getLogger(__name__)

LEAST_SEEN = 8  # a phrase of fewer completions is chance, or someone's own


class GuessesConfig(Config):
    """Settings of `python -m compress.onnx.guesses`."""

    artifact: Path
    """The ONNX Runtime model folder; its graph must tell its picks."""
    out: Path
    """The model folder to write; may be `artifact`."""
    cases: Path = Path("artifacts/demo/corpus/train.jsonl")
    """JSON Lines file of cases; keep it apart from those that anything is measured on."""
    count: int = 900
    """How many of its cases to complete."""
    least_chance: float | None = Field(None, gt=0, le=1)
    """How likely right all guesses of a pass must be; left out, what pays at the folder's
    precision."""


def learn(engine: OrtEngine, facts: Iterable[str]) -> list[list[int]]:
    """The engine's completions of these facts in tokens, each under one of its trained budgets."""
    most = engine.manifest.max_thinking_tokens
    budgets = [level for level in BUDGET_LEVELS if 16 <= level <= most] or [most]
    completions = []
    for place, fact in enumerate(facts):
        (done,) = engine.generate([Request(fact, budgets[-1 - place % len(budgets)], most)])
        ids = engine.tokenizer.encode(done.text)
        completions.append(ids + engine.eos_ids[:1] if done.finish == "stop" else ids)
    return completions


def count_habits(completions: Iterable[Sequence[int]], close: int) -> dict[Key, tuple[int, float]]:
    """Count what follows what in completions of token ids; each ends with its end of turn if any.

    Only phrases of at least `LEAST_SEEN` completions count. A key that reaches over the end of
    thinking (`close`) would tie the answer's phrases to single reasonings, so keys stop there.
    """
    follows: defaultdict[Key, Counter[int]] = defaultdict(Counter)
    seen_in: defaultdict[Key, int] = defaultdict(int)
    for completion in completions:
        keys: set[Key] = set()
        for place in range(1, len(completion)):
            for length in range(1, min(LONGEST_HABIT_KEY, place) + 1):
                key = tuple(completion[place - length : place])
                follows[key][completion[place]] += 1
                keys.add(key)
                if key[0] == close:
                    break
        for key in keys:
            seen_in[key] += 1
    learnt = {}
    for key, nexts in follows.items():
        if seen_in[key] >= LEAST_SEEN:
            token, times = nexts.most_common(1)[0]
            learnt[key] = token, round(times / (nexts.total() + 1), 3)
    return learnt


def write_habits(
    folder: Path, learnt: dict[Key, tuple[int, float]], least_chance: float = LEAST_CHANCE
) -> None:
    """Write a table into a model folder that is being made."""
    rows = [[*key, token, right] for key, (token, right) in sorted(learnt.items())]
    table = {"least_chance": least_chance, "rows": rows}
    write_atomic(folder / GUESSES, json.dumps(table, separators=(",", ":")) + "\n")


def make_artifact(config: GuessesConfig) -> int:
    """Write a copy of an artifact that has a table; returns how many phrases it holds.

    A table of nothing, with a warning, where there are too few cases to learn from. Raises
    ArtifactError when the artifact must not be loaded, ValueError where its graph does not tell its
    picks.
    """
    manifest = load_manifest(config.artifact, expect="ort-genai")
    engine = OrtEngine(config.artifact)
    if not engine.can_guess:
        raise ValueError(f"{config.artifact} does not tell its picks: see compress.onnx.picks")
    facts = [case.fact for case in list(read_cases(config.cases))[: config.count]]
    (close,) = engine.tokenizer.encode(THINK_END)
    learnt = count_habits(learn(engine, facts), close)
    recipe = RECIPES.get(manifest.precision)
    own = recipe.least_chance if recipe else None
    least_chance = config.least_chance or own or LEAST_CHANCE
    if not learnt:
        log.warning("no phrase comes up often enough in %d completions: use more cases", len(facts))
    with write_artifact(
        config.out, manifest.model_dump(exclude={"tools", "created", "files"})
    ) as folder:
        for name in manifest.files:
            if name != GUESSES:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(config.artifact / name, target)
        write_habits(folder, learnt, least_chance)
    log.info("%s guesses from %d phrases of %d cases", config.out, len(learnt), len(facts))
    return len(learnt)


def main(argv: list[str] | None = None) -> None:
    """Write the artifact; exits with a message on bad input."""
    config = load_config(GuessesConfig, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        make_artifact(config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
