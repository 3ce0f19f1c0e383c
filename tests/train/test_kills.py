"""kill -9 at random moments, as often as CURT_KILLS says: the run ends as an unbroken one would.

"As it should be" is exact here: the same rollouts, rewards, advantages and weights, bit for bit,
with one thread on one machine. A checkpoint holds the weights, the optimiser and the state of every
random generator; what was sampled after it is dropped and sampled again, the same.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.train.training_runs import (
    GENERATIONS,
    PROMPTS,
    finish,
    grpo_config,
    made_by,
    make_corpus,
    sft_config,
    start,
)
from train.data.trajectories import read_rollouts
from train.sft import train_warm_start

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CURT_KILLS", "2"))
STEPS = 8 + 4 * KILLS  # a multiple of eval_steps, so that the last evaluation is no other one


PLAIN: dict[str, object] = {}
ACCURATE = {
    "compact": True, "enforce_budgets": True, "rounds": 2, "oversample": 1,
    "advantages": "whitened", "correctness": "graded", "eval_steps": 4,
    "eval_cases": 6, "patience": 9,
}  # fmt: skip


@pytest.mark.parametrize("extra", [PLAIN, ACCURATE], ids=["plain", "accurate"])
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(tmp_path: Path, extra: dict):
    kept = signal.getsignal(signal.SIGINT)
    corpus = make_corpus(tmp_path)
    model = made_by(train_warm_start, sft_config(corpus, tmp_path / "warm", epochs=2.0))
    signal.signal(signal.SIGINT, kept)
    changes = {"steps": STEPS, "checkpoint_steps": 3, **extra}

    whole_log = tmp_path / "whole.log"
    whole = grpo_config(corpus, model, tmp_path / "whole", **changes)
    finish(start("train.grpo", whole, whole_log), whole_log)

    rng = random.Random(0)
    out, log = tmp_path / "killed", tmp_path / "killed.log"
    config = grpo_config(corpus, model, out, **changes)
    trajectories = tmp_path / "killed.run" / "trajectories"
    kills = 0
    for number in range(KILLS):
        # The next kill comes once the run has got further than the last one left it.
        goal = 1 + (number + 1) * (STEPS - 10) // (KILLS + 1)
        process = start("train.grpo", config, log)
        while process.poll() is None:
            reached = len(list(trajectories.glob("step-*.parquet")))
            if reached >= goal:
                time.sleep(rng.random() * 0.3)  # anywhere in a step: sampling, update, saving
                process.kill()
                process.wait()
                kills += 1
                break
            time.sleep(0.005)
        assert not out.exists()
    assert kills == KILLS
    finish(start("train.grpo", config, log), log)
    assert "resuming from" in log.read_text()

    unbroken = read_rollouts(tmp_path / "whole.run" / "trajectories")
    resumed = read_rollouts(trajectories)
    assert unbroken.num_rows >= STEPS * PROMPTS * GENERATIONS
    same = [c for c in unbroken.column_names if c != "config_sha256"]  # the folder differs
    assert resumed.select(same).equals(unbroken.select(same))
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    histories = [json.loads((f / "history.json").read_bytes()) for f in (tmp_path / "whole", out)]
    timeless = [[row | {"seconds": 0} for row in rows] for rows in histories]
    assert timeless[0] == timeless[1]
    assert sum("eval_correct" in row for row in timeless[0]) == (STEPS // 4 + 1 if extra else 0)
