from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from curt.artifact import write_artifact
from curt.report.claims import say_accuracy
from curt.report.inputs import Evaluation, LoadTest, read_run
from curt.report.page import render_page

HOSTILE = '<script>alert("x")</script><img src="http://evil.test/x.png" onerror=y>{{ 7*7 }}&'


def evaluation(name: str, exact: float, mean: int, n: int = 400, **more: Any) -> dict[str, Any]:
    source = random.Random(name)
    return {
        "name": name,
        "engine": "transformers",
        "model": f"artifacts/demo/{name}",
        "corpus": "test",
        "n": n,
        "stated_budget": 128,
        "scores": {"exact": exact, "charge_accuracy": 0.99, "term_score_official": None},
        "thinking_tokens": {"mean": mean, "p50": mean, "p95": mean + 9},
        "thinking_lengths": [mean + source.randint(-9, 9) for _ in range(n)],
        "by_budget": [
            {"budget": 16, "exact": exact / 2, "mean_thinking": 12.0, "scores": {}},
            {"budget": 64, "exact": exact, "mean_thinking": 30.0, "scores": {}},
        ],
        "by_trait": {"2 circumstances": {"n": 40, "exact": 0.5, "mean_thinking": 41.0}},
        "examples": [
            {"fact": "甲窃取现金。", "thinking": f"{name}想", "answer": "罪名：盗窃",
             "reference": "罪名：盗窃", "exact": True},
        ],
        **more,
    }  # fmt: skip


def load_test(p99: float | None = 312.4, *, passed: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "requests": 300,
        "misses": 0 if passed else 9,
        "misses_by_reason": {} if passed else {"shed (503)": 9},
        "latency_ms": {"p50": 90.0, "p99": p99, "max": 390.0},
        "latencies_ms": [80.0 + i for i in range(300)],
        "settings": {"slo_p99_ms": 400.0, "max_miss_rate": 0.01, "rate_per_s": 5.0},
        "confidence": {"proven": passed, "statement": "p99 < 400 ms at 95% confidence: proven"},
        "verdict": {"passed": passed, "reasons": [] if passed else ["9 of 300 missed"]},
        **more,
    }


def history(start: float, end: float, rows: int = 60) -> list[dict[str, float]]:
    return [
        {"step": i, "reward": i / rows, "exact": 0.5 + i / rows / 4,
         "thinking_tokens": start + (end - start) * i / (rows - 1), "seconds": i * 1.5}
        for i in range(rows)
    ]  # fmt: skip


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_run(folder: Path) -> Path:
    """A whole run: every part the page can show."""
    put(folder / "eval/warm-start.json", evaluation("warm-start", 0.70, 80))
    put(folder / "eval/grpo-none.json", evaluation("grpo-none", 0.74, 95))
    put(folder / "eval/grpo-default.json", evaluation("grpo-default", 0.60, 30))
    put(folder / "eval/ort-int4.json", evaluation("ort-int4", 0.59, 31))
    put(folder / "warm-start/history.json", [{"step": i, "loss": 3.0 / (i + 1)} for i in range(20)])
    put(folder / "grpo-default/history.json", history(80, 30))
    put(folder / "grpo-none/history.json", history(80, 95))
    put(folder / "loadtest.json", load_test())
    put(
        folder / "timing.json",
        {
            "corpus": {"seconds": 3.2, "peak_mib": 410},
            "warm-start": {"seconds": 700.0, "peak_mib": 2_900},
        },
    )
    describe = {
        "format": "ort-genai", "precision": "int4", "stage": "export", "base": "scratch",
        "max_fact_tokens": 200, "max_thinking_tokens": 64,
    }  # fmt: skip
    with write_artifact(folder / "ort-int4", describe) as temporary:
        (temporary / "model.onnx").write_bytes(b"x" * 5_000_000)
        put(
            temporary / "parity.json",
            {"kl": 0.0047, "argmax_agreement": 0.95, "decode_tokens_per_s_1_threads": 2160.0},
        )
    with write_artifact(folder / "trt-fp8", {**describe, "format": "trtllm-hf"}) as temporary:
        put(temporary / "verification.json", {"layers": {"checked": 29}, "worst": 0.01234567})
    return folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("whole") / "demo")


@pytest.fixture(scope="module")
def whole_page(whole_run: Path) -> str:
    return page_of(whole_run)


def page_of(folder: Path) -> str:
    return render_page(read_run(folder))


class Loads(HTMLParser):
    """Everything a browser would fetch or run, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("src", "href", "xlink:href", "data", "srcset", "action")
                and not (value or "").startswith("#")
            ):
                self.loads.append((name, value or ""))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.text += " "


def read_page(page: str) -> Loads:
    parser = Loads()
    parser.feed(page)
    return parser


def test_a_whole_run_makes_a_self_contained_page(whole_page: str) -> None:
    page = whole_page
    parsed = read_page(page)
    assert parsed.loads == []
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed.tags)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 6
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.find("title") is not None
        assert "currentColor" in svg
    assert "var(--series-1)" in page
    assert not re.search(r"(stroke|fill): #0(072b2|10203)", page), "colours come from the page"


def cards_of(page: str) -> list[tuple[str, str]]:
    """Value and detail of each headline number."""
    return re.findall(r'<p class="value">(.*?)</p>\n<p class="quiet">(.*?)</p>', page)


def test_the_headline_follows_the_numbers(whole_run: Path) -> None:
    run = read_run(whole_run)
    thinking, exact, latency = cards_of(render_page(run))
    before, after = (
        sum(run.evaluations[name].thinking_lengths) / 400 for name in ("warm-start", "grpo-default")
    )
    assert thinking[0] == f"{before:.1f} → {after:.1f}"
    assert exact[0] == "70.0% → 60.0%"
    assert "65.3% to 74.3% → 55.1% to 64.7%" in exact[1]
    assert latency[0] == '312 ms<span class="verdict pass">PASS</span>'


def test_the_page_says_when_training_made_it_worse(whole_page: str) -> None:
    text = read_page(whole_page).text
    assert "Exact accuracy fell from 70.0% to 60.0%" in text
    assert "worse by more than chance explains" in text
    assert "Mean thinking fell" in text


def test_the_page_says_when_training_made_it_better_or_longer(tmp_path: Path) -> None:
    put(tmp_path / "eval/warm-start.json", evaluation("warm-start", 0.50, 40))
    put(tmp_path / "eval/grpo-default.json", evaluation("grpo-default", 0.90, 60))
    text = read_page(page_of(tmp_path)).text
    assert "Exact accuracy rose from 50.0% to 90.0%" in text
    assert "better by more than chance explains" in text
    assert "Mean thinking rose" in text


def test_a_small_sample_says_so_and_claims_little(tmp_path: Path) -> None:
    put(tmp_path / "eval/warm-start.json", evaluation("warm-start", 0.5, 40, n=20))
    put(tmp_path / "eval/grpo-default.json", evaluation("grpo-default", 0.6, 30, n=20))
    text = read_page(page_of(tmp_path)).text
    assert "a difference that chance alone could make" in text
    assert "small sample" in text


def test_unlike_measurements_are_flagged(tmp_path: Path) -> None:
    put(tmp_path / "eval/warm-start.json", evaluation("warm-start", 0.5, 40, corpus="dev"))
    put(tmp_path / "eval/grpo-default.json", evaluation("grpo-default", 0.6, 30, n=300))
    text = read_page(page_of(tmp_path)).text
    assert "different corpora (dev and test)" in text
    assert "different numbers of cases (400 and 300)" in text


def test_an_empty_run_claims_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    text = read_page(page).text
    assert "<svg" not in page
    assert text.count("not run") >= 10
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    shown = read_page(body).text.split("How to read")[0]
    shown = re.sub(r"Written [^.]*\.|p99|95%", "", shown).replace(tmp_path.name, "")
    assert not re.search(r"\d", shown), "no number without a measurement"


@pytest.mark.parametrize(
    "missing",
    [
        "eval/warm-start.json", "eval/grpo-default.json", "eval/grpo-none.json", "loadtest.json",
        "timing.json", "warm-start/history.json", "grpo-default/history.json",
        "ort-int4/manifest.json", "trt-fp8/manifest.json",
    ],
)  # fmt: skip
def test_any_single_part_may_be_missing(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path)
    (run / missing).unlink()
    parsed = read_page(page_of(run))
    assert parsed.loads == []
    assert "How to read this page" in parsed.text


def test_evaluations_while_training_have_a_panel(tmp_path: Path, whole_page: str) -> None:
    rows = [row | {"eval_exact": 0.6} if not row["step"] % 20 else row for row in history(80, 30)]
    put(tmp_path / "grpo-accuracy/history.json", rows)
    assert "exact share of dev cases" in page_of(tmp_path)
    assert "exact share of dev cases" not in whole_page


def test_before_alone_shows_no_change(tmp_path: Path) -> None:
    put(tmp_path / "eval/warm-start.json", evaluation("warm-start", 0.7, 80))
    _, exact, latency = cards_of(page_of(tmp_path))
    assert exact[0] == "70.0% → not run"
    assert latency[0] == "not run"
    text = read_page(page_of(tmp_path)).text
    assert "GRPO, length penalty: evaluation not run." in text
    assert not re.search(r"(fell|rose) from", text)


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    examples = [
        {"fact": HOSTILE, "thinking": HOSTILE, "answer": {"charges": [HOSTILE]},
         "reference": HOSTILE, "exact": False}
    ]  # fmt: skip
    put(
        tmp_path / "eval/warm-start.json",
        evaluation("warm-start", 0.7, 80, examples=examples, engine=HOSTILE, model=HOSTILE),
    )
    put(tmp_path / "eval/other.json", evaluation("other", 0.5, 10))
    (tmp_path / "eval/other.json").rename(tmp_path / "eval/<b>$x_1$ & co.json")
    put(tmp_path / "timing.json", {HOSTILE: {"seconds": 1.0, "peak_mib": 2}})
    page = page_of(tmp_path)
    parsed = read_page(page)
    assert parsed.loads == []
    assert not {"script", "img"} & set(parsed.tags)
    assert HOSTILE in parsed.text, "shown as it is written, template braces included"
    assert "<b>$x_1$ & co" in parsed.text
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)


def test_examples_stand_side_by_side(whole_page: str) -> None:
    text = read_page(whole_page).text
    assert text.index("warm-start想") < text.index("grpo-default想")


def test_a_failed_load_test_is_called_failed(tmp_path: Path) -> None:
    put(tmp_path / "loadtest.json", load_test(None, passed=False))
    *_, latency = cards_of(page_of(tmp_path))
    assert latency[0] == 'no valid answer<span class="verdict fail">FAIL</span>'
    text = read_page(page_of(tmp_path)).text
    assert "p99 falls on a request without a valid answer" in text
    assert "9 of 300 requests missed (9 shed (503))" in text
    assert "FAIL" in text


def test_a_load_test_without_answers_draws_nothing(tmp_path: Path) -> None:
    put(tmp_path / "loadtest.json", load_test(None, passed=False, latencies_ms=[]))
    page = page_of(tmp_path)
    assert "<svg" not in page
    assert "No valid answer came" in page


def test_what_the_load_test_writes_is_what_the_report_reads() -> None:
    from loadtest._slo import Outcome, Slo, summarise

    outcomes = [Outcome(50.0, None, True), Outcome(2.0, "shed (503)")]
    settings = {"slo_p99_ms": 400, "max_miss_rate": 0.01, "rate_per_s": 5}
    for some in (outcomes, []):
        written = {**summarise(some, Slo(), require_proof=False), "settings": settings}
        load = LoadTest.model_validate_json(json.dumps(written))
        assert load.requests == len(some)
        assert not load.verdict.passed


def test_an_altered_artifact_is_not_presented_as_valid(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "ort-int4/model.onnx").write_bytes(b"y")
    text = read_page(page_of(run)).text
    assert "ort-int4 is not a valid model folder" in text


def test_artifact_rows_hold_what_was_measured(whole_page: str) -> None:
    text = " ".join(read_page(whole_page).text.split())
    assert "ort-int4 ort-genai int4 5.0 not run 2,160 0.0047 95.0% 59.0%" in text
    assert "2 circumstances 50.0% of 40, 41.0 tokens" in text
    assert "layers.checked 29 worst 0.01235" in text


def test_what_must_not_matter_and_what_must_stand_beside_their_intervals(tmp_path: Path) -> None:
    row = {"value": 0.9, "low": 0.82, "high": 0.95, "n": 80, "exact_before": 0.5, "exact": 0.45}
    pairs = {"by_kind": {"name": row, "amount": row | {"value": 0.7}}, "cases": [{"name": True}]}
    rival = {"name": row | {"value": 0.8, "low": 0.7, "high": 0.87, "exact": 0.41}}
    pairs["classifier"] = rival
    put(tmp_path / "eval/a.json", evaluation("a", 0.7, 80, counterfactuals=pairs))
    text = " ".join(read_page(page_of(tmp_path)).text.split())
    assert "name stay 80 90.0% 82.0% to 95.0% 80.0% 70.0% to 87.0% 50.0% 45.0% 41.0%" in text
    assert "amount move 80 70.0% 82.0% to 95.0% not run 50.0%" in text


@pytest.mark.parametrize(
    ("right_of_model", "right_alone", "judgement"),
    [
        (240, 330, "the model in 60.0% (−22.5 points, 95% interval"),
        (240, 330, "the classifier is better"),
        (330, 240, "the model earns its time"),
        (241, 240, "no difference beyond chance"),
    ],
)
def test_the_classifier_alone_stands_beside_the_model(
    tmp_path: Path, right_of_model: int, right_alone: int, judgement: str
) -> None:
    run = make_run(tmp_path)
    mine, alone = ([i < right for i in range(400)] for right in (right_of_model, right_alone))
    beside = {"scores": {"exact": right_alone / 400}, "exact_cases": alone}
    row = evaluation("ort-int4", right_of_model / 400, 31, exact_cases=mine, classifier=beside)
    put(run / "eval/ort-int4.json", row)
    text = " ".join(read_page(page_of(run)).text.split())
    assert judgement in text
    assert f"{right_of_model / 400:.3f} {right_alone / 400:.3f}" in text


def test_what_the_gate_said_is_among_a_folders_checks(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    criteria = {"accuracy": {"passed": False, "loss": 0.1234, "limit": 0.03}}
    put(run / "ort-int4/gate.json", {"passed": False, "refused": ["a"], "criteria": criteria})
    text = " ".join(read_page(page_of(run)).text.split())
    assert "criteria.accuracy.passed False criteria.accuracy.loss 0.1234" in text


@pytest.mark.parametrize("text", ["{broken", "[]", '{"name": "张某的隐私", "n": "many"}'])
def test_a_malformed_part_is_named_without_its_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "eval/warm-start.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"warm-start\.json is not what its stage writes"
    ) as caught:
        read_run(tmp_path)
    assert "隐私" not in str(caught.value)
    assert "run that stage again" in str(caught.value)


def test_a_missing_run_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make demo"):
        read_run(tmp_path / "nowhere")


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    subprocess.run(
        [sys.executable, "-m", "curt.report", "--run", str(run)],
        check=True, capture_output=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_classifier_folder_is_the_rival_and_no_broken_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    scores = {
        "dev_charge_micro_f1": 0.899,
        "dev_term_score_official": 0.607,
        "dev_latency_p50_ms": 0.41,
    }
    put(
        run / "fallback/manifest.json",
        {"format": "fallback-onnx", "evaluation": scores, "tools": {}, "files": {}, "features": ""},
    )
    page = page_of(run)
    assert "not a valid model folder" not in page
    rival = page[page.index("The classifier alone") :]
    assert "0.899" in rival
    assert "0.607" in rival
    assert "0.41" in rival
    assert "the two differ" not in rival
    scores |= {
        "agreement_disputes": 21,
        "agreement_disputes_classifier_nearer": 15,
        "agreement_disputes_model_nearer": 2,
        "agreement_disputes_overruled": 1,
    }
    put(
        run / "fallback/manifest.json",
        {"format": "fallback-onnx", "evaluation": scores, "tools": {}, "files": {}, "features": ""},
    )
    told = read_page(page_of(run)).text
    assert "in 21, of which the classifier is nearer the truth in 15 and the model in 2" in told


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": "hf", "files": 3}'])
def test_a_page_shows_no_exception_for_a_folder_that_does_not_load(
    tmp_path: Path, manifest: str
) -> None:
    run = make_run(tmp_path / "demo")
    (run / "broken").mkdir()
    (run / "broken/manifest.json").write_text(manifest, encoding="utf-8")
    text = read_page(page_of(run)).text
    assert "broken is not a valid model folder" in text
    words_of_exceptions = r"Traceback|validation error|Error\b|errors\.pydantic|input_value"
    assert re.findall(words_of_exceptions, text) == []


def test_accuracies_on_the_same_cases_are_compared_case_by_case() -> None:
    """Six points of 100: chance for two samples, not where six are won and none lost."""

    def evaluated(right: int, corpus: str) -> Evaluation:
        cases = [number < right for number in range(100)]
        scores: dict[str, float | None] = {"exact": right / 100}
        return Evaluation(name="m", n=100, scores=scores, exact_cases=cases, corpus_sha256=corpus)

    before, after = evaluated(50, "same"), evaluated(56, "same")
    assert "by more than chance" in say_accuracy(before, after)
    assert "chance alone" in say_accuracy(before, evaluated(56, "other"))
