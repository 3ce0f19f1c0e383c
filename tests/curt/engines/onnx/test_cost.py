from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.onnx import speculation
from compress.onnx.speculation import GuessesConfig, add_guesses, price
from curt import evaluate as evaluation
from curt.artifact import load_manifest
from curt.dialogue import THINK_END, THINK_START
from curt.engines.onnx.cost import PassCost, ReasoningCost, read_cost
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Generation, Request
from curt.evaluate import EvaluateConfig, evaluate
from tests.compress.onnx.exports import export, make_untied_model, tell_likeliest, write_cases
from tests.curt.engines.onnx.test_engine import chain
from tests.micro import FACTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An export that always thinks the same seven tokens and has learnt to guess them.

    What it answers is no verdict, so nothing holds it to one.
    """
    folder = tmp_path_factory.mktemp("cost")
    links = chain(micro_model, f"{THINK_START}ABCDEFG{THINK_END}HIJ")
    model = make_untied_model(folder / "model", micro_model, chain=links)
    out = tell_likeliest(export(model, folder / "plain"), folder / "ort")
    cases = write_cases(folder / "cases.jsonl", 20)
    free = functools.partial(OrtEngine, guided=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "OrtEngine", free)
        patch.setattr(evaluation, "open_engine", lambda folder, **_: free(folder))
        add_guesses(GuessesConfig(artifact=out, out=out, cases=cases))
        yield out


@pytest.fixture(scope="module")
def engine(artifact: Path) -> OrtEngine:
    return OrtEngine(artifact, guided=False)


def test_the_manifest_tells_what_a_pass_costs(artifact: Path, engine: OrtEngine) -> None:
    cost = read_cost(artifact)
    evaluation = load_manifest(artifact).evaluation
    assert evaluation["pass_ms"] == cost.cost.pass_ms > 0
    assert "kl" in evaluation
    own = cost.measure(engine.tokenizer.encode(f"ABCDEFG{THINK_END}HIJ"), 16)
    assert own.ms < 7 * cost.cost.pass_ms


def test_own_reasoning_is_as_long_as_its_tokens_on_the_average(
    artifact: Path, engine: OrtEngine
) -> None:
    served = []
    replay = ReasoningCost(artifact, PassCost()).replay
    for thinking in ["ABCDEFG", "GFEDCBA", "ABDCA", "CC", "HAHAHA"] * 3:
        ids = engine.tokenizer.encode(f"{thinking}{THINK_END}HIJ") + engine.eos_ids[:1]
        passes, guesses = replay(ids, 16)
        ms = 0.2 * passes + 0.05 * guesses
        done = Generation(thinking, 9, len(thinking), 3, False, "stop", 0.0, ms, passes)
        served.append((done, ids))
    cost = PassCost(**price(served, artifact, artifact, 16))
    assert (cost.pass_ms, cost.guess_ms) == pytest.approx((0.2, 0.05), rel=0.01)
    lengths = [ReasoningCost(artifact, cost).measure(ids, 16).length for _, ids in served]
    assert sum(lengths) == pytest.approx(sum(done.thinking_tokens for done, _ in served))
    assert lengths[0] < 7 < lengths[1]


@pytest.mark.parametrize("limit", [1, 3, 7, 12])
def test_a_replay_counts_the_passes_that_were_served(
    artifact: Path, engine: OrtEngine, limit: int
) -> None:
    (done,) = engine.generate([Request(FACTS[0], 16, limit)])
    ids = engine.tokenizer.encode(done.text)
    whole = ids + engine.eos_ids[:1] if done.finish == "stop" else ids
    replay = ReasoningCost(artifact, PassCost()).replay
    assert done.decode_passes is not None
    assert done.answer_passes is not None
    assert replay(whole, limit)[0] == done.decode_passes
    reasoning = ids[: done.thinking_tokens + 1]
    assert replay(reasoning, limit)[0] == done.decode_passes - done.answer_passes


def test_what_nothing_guesses_costs_a_pass_a_token(artifact: Path, engine: OrtEngine) -> None:
    cost = ReasoningCost(artifact, PassCost())
    usual = engine.tokenizer.encode(f"ABCDEFG{THINK_END}HIJ")
    strange = engine.tokenizer.encode(f"GFEDCBA{THINK_END}HIJ")
    assert cost.measure(usual, 16).ms < cost.measure(strange, 16).ms == 8
    assert cost.measure(strange, 0) == cost.measure(strange, 16)  # longer than it was told
    assert cost.measure(usual[7:], 16).length == 0  # ending at once is what every answer takes
    assert cost.measure(strange[:7], 16).ms == 7  # cut off before its end


def test_an_evaluation_tells_the_milliseconds_of_each_budget(artifact: Path) -> None:
    config = EvaluateConfig(
        model=artifact,
        cost=artifact,
        corpus=artifact.parent / "cases.jsonl",
        out=Path("x.json"),
        budgets=[0, 2, 32],
        limit=3,
    )
    at_once, cut, whole = (row["mean_reasoning_ms"] for row in evaluate(config)["by_budget"])
    cost = read_cost(artifact)
    encode = cost.tokenizer.encode
    assert at_once == pytest.approx(cost.measure(encode(THINK_END), 0).ms)
    assert whole == pytest.approx(cost.measure(encode(f"ABCDEFG{THINK_END}"), 32).ms)
    assert cut > whole  # the guess ends where the budget does
