"""Service times from measured replies, and real replicas beside their simulation."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client import Exchange, Got
from benchmarks.fleet.__main__ import main
from benchmarks.fleet.accuracy import compare, describe, join_rounds
from benchmarks.fleet.replicas import Asked, ask, read_samples, running
from benchmarks.fleet.service import ENOUGH, Sample, Service, fit_service, share_beside
from benchmarks.fleet.simulation import Fleet

LIMITS = {"tokens_per_char": 0.5, "max_fact_tokens": 200, "max_thinking_tokens": 128}


def make_samples(count: int, contention: float = 0.0, noise_ms: float = 0.3) -> list[Sample]:
    """Prefill 2 + 0.05 a character, decode 5 + 0.3 a token."""
    source = random.Random(4)
    samples = []
    for _ in range(count):
        chars, tokens = source.randint(60, 260), source.choice([8, 15, 22, 30])
        beside = source.random()
        slow = 1 + contention * beside
        samples.append(
            Sample(
                chars=chars,
                stated_budget=128,
                thinking_tokens=tokens,
                cut=False,
                prefill_ms=slow * (2 + 0.05 * chars + source.uniform(-noise_ms, noise_ms)),
                decode_ms=slow * (5 + 0.3 * tokens + source.uniform(-noise_ms, noise_ms)),
                front_ms=2.0,
                outside_ms=1.0,
                beside=beside,
            )
        )
    return samples


def asked(at_s: float, took_ms: float = 30.0, status: int = 200, **reply: Any) -> Asked:
    """A request answered within 30 ms: 1 outside, 4 in the front, 25 with a worker."""
    told = {
        "degraded": False,
        "degraded_reason": None,
        "source": "model",
        "thinking": {"tokens": 20, "allowed": 128, "stated_budget": 128, "cut": False},
        "timings_ms": {"queue": 0.0, "prefill": 10.0, "decode": 15.0, "total": 29.0},
    }
    got = Got(status, json.dumps(told | reply).encode())
    return Asked.of(Exchange(0, at_s, at_s, at_s + took_ms / 1e3, got), chars=100)


@pytest.mark.parametrize("contention", [0.0, 0.35])
def test_the_lines_that_made_the_replies_are_found_again(contention: float) -> None:
    service = fit_service(make_samples(800, contention), **LIMITS)
    assert service.prefill_base_ms == pytest.approx(2, abs=0.3)
    assert service.prefill_char_ms == pytest.approx(0.05, rel=0.05)
    assert service.answer_ms == pytest.approx(5, rel=0.05)
    assert service.token_ms == pytest.approx(0.3, rel=0.05)
    assert service.contention == pytest.approx(contention, abs=0.03)


def test_what_the_lines_leave_over_is_kept_stalls_too() -> None:
    samples = make_samples(200)
    stalled = samples[7].model_copy(update={"decode_ms": samples[7].decode_ms + 80})
    service = fit_service([*samples[:7], stalled, *samples[8:]], **LIMITS)
    remainders = sorted(noise.decode_ms for noise in service.noises)
    assert remainders[-1] == pytest.approx(80, abs=3)
    assert remainders[-2] < 2
    assert {(noise.front_ms, noise.outside_ms) for noise in service.noises} == {(2.0, 1.0)}


def test_a_budget_with_few_replies_borrows_lengths_from_a_wider_one() -> None:
    samples = make_samples(60)
    few = [s.model_copy(update={"stated_budget": 16, "thinking_tokens": 9}) for s in samples[:3]]
    many = [s.model_copy(update={"stated_budget": 32, "cut": True}) for s in samples[:ENOUGH]]
    service = fit_service([*samples, *few, *many], **LIMITS)
    assert sorted(service.thoughts) == [32, 128]
    assert len(service.thoughts[32]) == ENOUGH + 3
    assert sum(each.tokens is None for each in service.thoughts[32]) == ENOUGH
    source = random.Random(0)
    assert all(service.draw_thought(source, 48).tokens in (8, 15, 22, 30) for _ in range(50))


def test_too_little_to_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="measure 20 or more"):
        fit_service(make_samples(5), **LIMITS)
    same = [s.model_copy(update={"thinking_tokens": 20}) for s in make_samples(40)]
    with pytest.raises(ValueError, match="several deadlines"):
        fit_service(same, **LIMITS)


def test_a_fit_survives_its_file_and_describes_itself() -> None:
    service = fit_service(make_samples(100), **LIMITS)
    again = Service.model_validate_json(service.model_dump_json())
    assert again == service
    told = describe(again)
    assert told["samples"] == 100
    assert told["mean_ms"] == pytest.approx(10 + 5 + 0.3 * 19, rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3)), max_size=8), st.floats(0.1, 5))
def test_the_share_beside_others_is_that_of_a_fine_grid(
    others: list[tuple[float, float]], length: float
) -> None:
    spans = sorted((start, start + long) for start, long in others)
    share = share_beside((3.0, 3.0 + length), spans)
    grid = [3.0 + length * (n + 0.5) / 2_000 for n in range(2_000)]
    covered = sum(any(low <= at <= high for low, high in spans) for at in grid) / 2_000
    assert share == pytest.approx(covered, abs=0.01)


def test_only_whole_answers_of_the_model_teach() -> None:
    late = asked(1.0, degraded=True, degraded_reason="deadline", source="fallback")
    unreadable = asked(2.0, degraded=True, degraded_reason="unreadable_answer", source="fallback")
    refused = asked(3.0, status=503)
    samples = read_samples([asked(0.0), late, unreadable, refused])
    assert [each.readable for each in samples] == [True, False]
    assert samples[0].front_ms == pytest.approx(4.0)
    assert samples[0].outside_ms == pytest.approx(1.0)


def test_who_was_beside_is_told_from_the_times_with_a_worker() -> None:
    samples = read_samples([asked(0.0), asked(0.0125), asked(1.0)])
    assert [each.beside for each in samples] == pytest.approx([0.5, 0.5, 0.0], abs=0.02)


def test_handing_a_request_to_a_free_worker_is_the_front_s_and_waiting_is_not() -> None:
    def queued(at_s: float, queue_ms: float) -> Asked:
        times = {"queue": queue_ms, "prefill": 10.0, "decode": 15.0, "total": 29.0 + queue_ms}
        return asked(at_s, 30 + queue_ms, timings_ms=times)

    alone = [queued(float(second), 1.0) for second in range(20)]
    samples = read_samples([*alone, queued(30.0, 1.0), queued(30.0, 21.0)])
    assert [each.front_ms for each in samples] == pytest.approx([5.0] * 22)


def test_rounds_follow_each_other_with_a_pause() -> None:
    first, second = [asked(5.0), asked(6.0)], [asked(100.0), asked(100.5)]
    assert join_rounds([first, second]) == pytest.approx([0.0, 1.0, 2.0, 2.5])


def test_the_simulation_of_what_made_the_replies_is_close_to_them() -> None:
    """Replies of 30 ms each, fitted and simulated: nothing else can come out."""
    source = random.Random(2)
    replies, at_s = [], 0.0
    for _ in range(300):
        at_s += 0.1
        tokens = source.choice([10, 20, 30])
        times = {"queue": 0.0, "prefill": 10.0, "decode": 5 + 0.5 * tokens}
        thinking = {"tokens": tokens, "allowed": 128, "stated_budget": 128, "cut": False}
        times["total"] = 4.0 + sum(times.values())
        replies.append(asked(at_s, 1.0 + times["total"], thinking=thinking, timings_ms=times))
    service = fit_service(read_samples(replies), **LIMITS)
    row, latencies_ms = compare(
        service, Fleet(2, one_machine=True), 10.0, [replies[:150], replies[150:]], repeats=3, seed=1
    )
    assert row["requests"] == len(latencies_ms["real"]) == len(latencies_ms["simulated"]) == 300
    assert abs(row["error"]["p50"]) < 0.02
    assert abs(row["error"]["p99"]) < 0.02
    assert row["full_share"] == {"real": 1.0, "simulated": 1.0}


def test_the_command_sizes_a_fleet_from_a_fit(tmp_path: Path) -> None:
    service = tmp_path / "service.json"
    service.write_text(fit_service(make_samples(100), **LIMITS).model_dump_json())
    report = tmp_path / "sizes.json"
    main(
        [
            "size", "--service", str(service), "--report", str(report),
            "--rates", "[1, 300]", "--effort.requests", "300", "--effort.cell", "2",
        ]
    )  # fmt: skip
    results = json.loads(report.read_text())
    small, large = results["sizes"]
    assert small["replicas"] == 1 < large["replicas"]
    assert len(results["one_server"]) == 7
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "say what to do"),
        (["size", "--service", "absent.json"], "No such file"),
    ],
)
def test_the_command_refuses_with_a_message(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert message in str(stopped.value)


@pytest.mark.slow
def test_real_replicas_are_asked_in_turn_and_their_replies_read(
    soak_model: Path, tmp_path: Path
) -> None:
    fact = "被告人赵某在某市某小区秘密窃取他人现金8000元，归案后如实供述自己的罪行。"
    facts = [fact * times for times in (1, 2, 3)]
    with running(soak_model, 2, workers=1, spares=0) as urls:
        asked = asyncio.run(
            ask(urls, facts, rate_per_s=20, seconds=3, seed=1, deadlines_ms=(1_000, 3_000))
        )
        counts = [count_requests(url) for url in urls]
    assert len(asked) > 30
    assert abs(counts[0] - counts[1]) <= 1
    samples = read_samples(asked)
    assert len(samples) == sum(each.answered for each in asked) > 0.8 * len(asked)
    assert all(each.prefill_ms > 0 and each.decode_ms > 0 for each in samples)
    assert len({each.chars for each in samples}) >= 3


def count_requests(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(row.split()[-1]) for row in lines if row.startswith("curt_requests_total"))
