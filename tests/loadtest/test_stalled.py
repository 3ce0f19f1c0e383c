from __future__ import annotations

import pytest

from tests.loadtest.stalled_runs import StalledConfig, measure


@pytest.mark.slow
def test_the_open_run_fails_a_stalling_server_that_the_closed_run_passes() -> None:
    results = measure(StalledConfig(seconds=11.0))
    open_run, closed = results["open"], results["closed"]
    assert closed["exit_code"] == 0, closed["verdict"]
    assert open_run["exit_code"] == 1, open_run["verdict"]
    # Of arrivals in a 1 s stall, those in its first 0.6 s wait more than 400 ms: 12% of all.
    assert 0.06 < open_run["miss_rate"] < 0.25
    assert closed["miss_rate"] < 0.01
    assert open_run["latency_ms"]["p99"] > 400 > closed["latency_ms"]["p99"]
    assert open_run["achieved_rate_per_s"] == pytest.approx(closed["achieved_rate_per_s"], rel=0.25)
