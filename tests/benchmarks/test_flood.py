"""What the benchmark of a flood says of a server that is fair, and of one that is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.flood import FloodConfig, measure, work
from benchmarks.run import RunningServer
from curt.corpus.store import write_cases
from tests.benchmarks.fake_server import answer, http, serving
from tests.cases import common_cases


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("refused", ["flood", "calm"])
def test_who_loses_beside_a_flood(tmp_path: Path, refused: str) -> None:
    write_cases(tmp_path / "cases.jsonl", common_cases(5, seed=1))
    config = FloodConfig(
        cases=tmp_path / "cases.jsonl", calm_rate=20, flood_rate=60, minutes=0.02, alone_seconds=0.5
    )

    def reply(body: Any) -> bytes:
        return http({}, "503 Busy") if body["api_key"] == refused else http(answer())

    async def scenario() -> dict[str, Any]:
        async with serving(reply) as url:
            server = RunningServer(None, url, tmp_path)  # type: ignore[arg-type]
            return await measure(config, server, "calm", "flood")

    results = asyncio.run(scenario())
    lost = results["beside" if refused == "calm" else "flood"]
    assert lost["misses"] == {"all": lost["arrived"], "refused": lost["arrived"]}
    assert lost["arrived"] > 5
    assert all(results["passed"].values()) is (refused == "flood")


@pytest.mark.slow
def test_a_short_flood_of_a_real_server(soak_model: Path, tmp_path: Path) -> None:
    """The model of random weights comes to no end, so all is lost; keys and server work."""
    write_cases(tmp_path / "cases.jsonl", common_cases(5, seed=1))
    config = FloodConfig(
        model=soak_model, fallback=None, cases=tmp_path / "cases.jsonl", workers=1,
        minutes=0.03, alone_seconds=1, calm_rate=5, flood_rate=20, report=tmp_path / "flood.json",
    )  # fmt: skip
    assert work(config) == 1
    assert '"degraded: ' in (tmp_path / "flood.json").read_text()
    assert '"error"' not in (tmp_path / "flood.json").read_text()  # no key was refused
