"""Records a second and memory of each stage of a corpus build, from small to large.

    make bench-corpus

Writes CAIL2018 files of generated records with near-duplicates, test cases and broken lines planted
at known shares, builds them, and reports a stage's speed, the build's peak memory (unique set size,
of all its processes together), what share of the planted was found, and hours for 1.7 million
records at the speed of the largest size. Facts are drawn at the lengths of real ones from a made-up
vocabulary: templates would make each a near-duplicate of another.
"""

from __future__ import annotations

import json
import logging
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil

from curt.config import Config, load_config
from curt.files import write_json
from curt.logs import configure_logging

logger = logging.getLogger(__name__)

CAIL_RECORDS = 1_700_000
TEST_RECORDS = 2_000
NEAR, LEAKED, BROKEN = 0.03, 0.01, 0.005
SAMPLE_S = 0.2
MEDIAN_CHARACTERS, SPREAD = 313, 0.7  # of log-normal lengths, as those of real facts


class BenchConfig(Config):
    """Sizes and backend to measure."""

    sizes: list[int] = [10_000, 200_000]
    """Training records of each build."""
    backend: Literal["serial", "datasets", "ray"] = "datasets"
    """What shards run on."""
    workers: int = 2
    """Processes of the backend."""
    seed: int = 7
    """Of the records."""
    out: Path = Path("benchmarks/corpus.json")
    """Where the figures go."""


def main() -> None:
    """Measure each size and write the figures."""
    config = load_config(BenchConfig)
    configure_logging()
    runs = []
    for size in config.sizes:
        with tempfile.TemporaryDirectory(prefix="curt-bench-") as name:
            run = measure(config, size, Path(name))
        logger.info("%s", run)
        runs.append(run)
    largest = runs[-1]
    rate = largest["records"] / largest["seconds"]
    write_json(
        config.out,
        {
            "config": config.model_dump(mode="json"),
            "planted": {"near duplicates": NEAR, "test cases": LEAKED, "broken lines": BROKEN},
            "runs": runs,
            "projected_hours_for_1_7_million": round(CAIL_RECORDS / rate / 3600, 2),
        },
    )


def measure(config: BenchConfig, size: int, folder: Path) -> dict[str, Any]:
    """Build a corpus of `size` training records in a process of its own and watch it."""
    planted = write_records(folder / "cail", size, config.seed)
    command = [
        sys.executable, "-m", "curt.corpus", "build", "--cail", str(folder / "cail"),
        "--backend", config.backend, "--workers", str(config.workers),
        "--out", str(folder / "out"),
    ]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = watch_memory(process)
    if process.returncode:
        raise RuntimeError(f"the build of {size} records failed: see its log above")
    summary = json.loads((folder / "out" / "corpus.json").read_text(encoding="utf-8"))
    dropped = summary["dropped"]["train"]
    return {
        "records": summary["records"],
        "seconds": round(time.monotonic() - start, 1),
        "records_a_second": {
            stage: round(summary["records"] / seconds)
            for stage, seconds in summary["stages"].items()
            if seconds > 0.5
        },
        "peak_memory_mb": round(peak / 1e6),
        "kept": summary["counts"]["train"],
        "planted": planted,
        "found": {
            "near duplicates": dropped.get("near duplicate", 0) + dropped.get("exact duplicate", 0),
            "test cases": dropped.get("test case", 0),
            "broken lines": sum(summary["quarantined"]["train"].values()),
        },
        "other_words": dropped.get("other words", 0) + dropped.get("test case in other words", 0),
    }


def watch_memory(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; the largest sum of unique set sizes of it and its children, bytes."""
    root = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        total = 0
        try:
            for member in [root, *root.children(recursive=True)]:
                total += member.memory_full_info().uss
        except psutil.Error:  # one has just ended
            continue
        peak = max(peak, total)
        time.sleep(SAMPLE_S)
    return peak


def write_records(folder: Path, size: int, seed: int) -> dict[str, int]:
    """Write the three files and return how many of each kind were planted."""
    folder.mkdir()
    rng = random.Random(seed)
    words = ["".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2)) for _ in range(20_000)]
    weights = [1 / (place + 20) for place in range(len(words))]
    test = [_draw_fact(rng, words, weights) for _ in range(TEST_RECORDS)]
    for name in ("test", "dev"):
        facts = test[: TEST_RECORDS // 2] if name == "test" else test[TEST_RECORDS // 2 :]
        lines = (_write_line(rng, fact) for fact in facts)
        (folder / f"{name}.json").write_text("".join(lines), encoding="utf-8")
    planted = {"near duplicates": 0, "test cases": 0, "broken lines": 0}
    recent: list[str] = []
    with open(folder / "train.json", "w", encoding="utf-8") as file:
        for line in _draw_lines(rng, size, test, words, weights, planted, recent):
            file.write(line)
    return planted


def _draw_lines(
    rng: random.Random,
    size: int,
    test: list[str],
    words: list[str],
    weights: list[float],
    planted: dict[str, int],
    recent: list[str],
) -> Iterator[str]:
    for _ in range(size):
        kind = rng.random()
        if kind < NEAR and len(recent) > 100:
            planted["near duplicates"] += 1
            yield _write_line(rng, _edit(rng, rng.choice(recent)))
        elif kind < NEAR + LEAKED:
            planted["test cases"] += 1
            yield _write_line(rng, _edit(rng, rng.choice(test)))
        elif kind < NEAR + LEAKED + BROKEN:
            planted["broken lines"] += 1
            yield _write_line(rng, "被告人")[: rng.randrange(5, 40)] + "\n"
        else:
            fact = _draw_fact(rng, words, weights)
            if len(recent) < 5000:
                recent.append(fact)
            yield _write_line(rng, fact)


def _draw_fact(rng: random.Random, words: list[str], weights: list[float]) -> str:
    characters = int(min(6000, max(60, rng.lognormvariate(math.log(MEDIAN_CHARACTERS), SPREAD))))
    drawn = rng.choices(words, weights, k=characters // 2)
    for place in range(8, len(drawn), 9):
        drawn[place] = rng.choice(("，", "。", f"{rng.randrange(1, 90_000)}元，"))
    return f"20{rng.randrange(10, 20)}年{rng.randrange(1, 13)}月，被告人{''.join(drawn)}。"


def _edit(rng: random.Random, fact: str) -> str:
    """A letter in fifty changed, lost or added."""
    letters = list(fact)
    for _ in range(max(1, len(letters) // 50)):
        letters[rng.randrange(len(letters))] = rng.choice(("", "某", "了", "二"))
    return "".join(letters)


def _write_line(rng: random.Random, fact: str) -> str:
    months = rng.choice((4, 6, 8, 12, 18, 36))
    term = {"death_penalty": False, "life_imprisonment": False, "imprisonment": months}
    meta = {
        "relevant_articles": [264],
        "accusation": ["盗窃"],
        "punish_of_money": 1000,
        "criminals": ["某"],
        "term_of_imprisonment": term,
    }
    return json.dumps({"fact": fact, "meta": meta}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
