from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.roofline import (
    RooflineConfig,
    decoded_tokens,
    floor_ms,
    measure,
    read_gb_per_s,
    token_bytes,
)
from benchmarks.roofline_plot import draw_roofline
from benchmarks.roofline_profile import profile_decoding, split_time
from curt.engines.protocol import Generation
from tests.micro import FACTS

DECODER = {"hidden_size": 8, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_size": 4}


def session(ts: int, dur: int) -> dict[str, object]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def node(ts: int, dur: int, kind: str, name: str = "x_kernel_time") -> dict[str, object]:
    return {"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": {"op_name": kind}}


def test_bytes_of_a_token():
    found = token_bytes(1000, DECODER, 10)
    # both of keys and values, 10 positions, 2 layers, 1 head, 4 numbers of 4 bytes
    assert found == {
        "weights": 1000,
        "embedding_row": 32,
        "keys_and_values": 640,
        "total": 1672,
    }
    with pytest.raises(ValueError, match="0 or more"):
        token_bytes(1000, DECODER, -1)


@given(st.floats(1, 1e12), st.floats(0.1, 1000))
def test_the_floor_is_bytes_over_bandwidth(total, gb_per_s):
    assert floor_ms(total, gb_per_s) == pytest.approx(total / (gb_per_s * 1e9) * 1e3)


def test_no_bandwidth_has_no_floor():
    with pytest.raises(ValueError, match="measure it again"):
        floor_ms(1.0, 0.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_has_a_speed(threads):
    assert 0.1 < read_gb_per_s(np.ones(1 << 20, dtype=np.float32), threads) < 10_000


def test_the_end_of_thinking_is_a_token_too():
    assert decoded_tokens(Generation("", 9, 5, 7, False, "stop", 1.0, 1.0)) == 13


def test_time_is_split_over_the_last_runs():
    events = [
        session(0, 500),  # the prompt
        node(10, 400, "MatMul"),
        session(1000, 100),
        node(1010, 40, "MatMul"),
        node(1060, 10, "Add"),
        node(1005, 1, "MatMul", name="x_fence_before"),
        session(2000, 80),
        node(2010, 60, "MatMul"),
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9, "args": {}},
    ]
    found = split_time(events, 2)
    assert found["session_us"] == 90
    assert found["in_operators_us"] == 55
    assert found["between_operators_us"] == 35
    assert found["nodes"] == 1.5
    assert found["operators"] == {
        "MatMul": {"us": 50.0, "nodes": 1.0},
        "Add": {"us": 5.0, "nodes": 0.5},
    }
    with pytest.raises(ValueError, match="decode more tokens"):
        split_time(events, 4)


@pytest.mark.slow
def test_a_real_session_is_profiled(soak_model: Path) -> None:
    found = profile_decoding(soak_model, 20, 12)
    assert found["runs"] == 8
    assert found["nodes"] > 10
    assert found["operators"]
    assert 0 < found["in_operators_us"] <= found["session_us"] <= found["token_us"] * 1.01
    with pytest.raises(ValueError, match="more than"):
        profile_decoding(soak_model, 20, 3)


@pytest.mark.slow
def test_a_whole_measurement(soak_model: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(json.dumps({"fact": fact}) for fact in FACTS))
    config = RooflineConfig(
        rounds=1,
        threads=(1,),
        prompt_tokens=150,
        decode_tokens=16,
        served_requests=3,
        cases=cases,
    )
    found = measure(config, soak_model)
    (loop,) = found["loops"]
    assert 0 < loop["floor_model_sized_ms"] < loop["bare_ms"]["median"]
    assert found["served"]["requests"] > 0
    assert draw_roofline({"micro": found}).startswith(b"\x89PNG")
