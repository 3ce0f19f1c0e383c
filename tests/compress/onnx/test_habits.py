from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.onnx import speculation
from compress.onnx.speculation import (
    LEAST_SEEN,
    GuessesConfig,
    add_guesses,
    count_habits,
    fit_cost,
    write_habits,
)
from curt.artifact import ArtifactError, load_manifest
from curt.dialogue import THINK_END, THINK_START
from curt.engines.onnx.cost import read_cost
from curt.engines.onnx.engine import OrtEngine
from curt.engines.onnx.speculation import GUESSES, HabitTable, read_habits
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, make_untied_model, tell_likeliest, write_cases
from tests.curt.engines.onnx.test_engine import chain
from tests.micro import FACTS

CLOSE, END = 8, 9
TOKENS = st.lists(st.integers(0, 7), max_size=30)


def table(*completions: list[int]) -> HabitTable:
    return HabitTable(count_habits([*completions], CLOSE), [END])


def test_what_always_came_next_is_guessed_to_the_end_of_the_turn() -> None:
    guesses = table(*[[1, 2, 3, 4, END]] * 20)
    assert guesses.after([1], 9) == (2, 3, 4)
    assert guesses.after([7, 2], 9) == (3, 4)
    assert guesses.after([1], 2) == (2, 3)
    assert guesses.after([4], 9) == guesses.after([5], 9) == guesses.after([], 9) == ()


def test_the_longest_text_behind_decides() -> None:
    guesses = table(*[[1, 3, 5]] * 10, *[[2, 3, 6]] * 30)
    assert guesses.after([3], 1) == guesses.after([2, 3], 1) == (6,)
    assert guesses.after([1, 3], 1) == (5,)


def test_what_came_as_often_as_not_is_no_guess() -> None:
    assert table(*[[1, 2]] * 20, *[[1, 3]] * 20).after([1], 9) == ()


def test_a_phrase_of_few_completions_is_forgotten() -> None:
    often = [1, 2] * 50  # again and again, but by few
    assert table(*[often] * (LEAST_SEEN - 1)).after([1], 9) == ()
    assert len(table(*[often] * LEAST_SEEN)) > 0


def test_an_answer_is_not_tied_to_the_reasoning_before_it() -> None:
    learnt = count_habits([[1, CLOSE, 4, 5]] * 20, CLOSE)
    assert (CLOSE,) in learnt
    assert (CLOSE, 4) in learnt
    assert not any(CLOSE in key[1:] and key[-1] != CLOSE for key in learnt)


@given(completions=st.lists(TOKENS, max_size=12), text=TOKENS, most=st.integers(0, 20))
def test_guesses_keep_their_bounds(
    completions: list[list[int]], text: list[int], most: int
) -> None:
    guesses = table(*completions).after(text, most)
    assert len(guesses) <= most
    assert END not in guesses


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    learnt = count_habits([[1, 2, 3, CLOSE, 4, END]] * 9, CLOSE)
    assert len(read_habits(tmp_path, [END])) == 0
    write_habits(tmp_path, learnt)
    read = read_habits(tmp_path, [END])
    assert len(read) == len(learnt)
    for key in learnt:
        assert read.after(key, 9) == HabitTable(learnt, [END]).after(key, 9)


def test_the_times_of_passes_and_guesses_are_told_apart() -> None:
    def timed(passes: int, guesses: int, noise: float) -> tuple[int, int, float]:
        return passes, guesses, (0.2 * passes + 0.05 * guesses) * noise

    cost = fit_cost([timed(10 + n % 7, n % 5 * 4, 1.02 - n % 2 * 0.04) for n in range(40)])
    assert (cost.pass_ms, cost.guess_ms) == pytest.approx((0.2, 0.05), rel=0.03)
    assert 0.01 < cost.cost_error < 0.03
    together = fit_cost([timed(10, 30, 1.0)] * 20)  # nothing tells the two apart
    assert (together.pass_ms, together.guess_ms) == pytest.approx((0.35, 0), abs=1e-3)


def many_cases(folder: Path) -> Path:
    few = write_cases(folder / "few.jsonl")
    many = folder / "many.jsonl"
    many.write_text(few.read_text(encoding="utf-8") * 3, encoding="utf-8")
    return many


@pytest.fixture(scope="module")
def folders(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An export that always writes the same, and its copy that has learnt so."""
    folder = tmp_path_factory.mktemp("guesses")
    links = chain(micro_model, f"{THINK_START}ABCDEFG{THINK_END}HIJ")
    model = make_untied_model(folder / "model", micro_model, chain=links)
    tell_likeliest(export(model, folder / "plain"), folder / "ort")
    cases = many_cases(folder)
    config = GuessesConfig(artifact=folder / "ort", out=folder / "learnt", cases=cases, count=15)
    with pytest.MonkeyPatch.context() as patch:  # what it writes is no verdict
        patch.setattr(speculation, "OrtEngine", functools.partial(OrtEngine, guided=False))
        add_guesses(config)
    assert len(read_habits(config.out, ends=())) > 0
    return folder / "ort", folder / "learnt"


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 6, 7, 8, 40])
@pytest.mark.parametrize("answer_limit", [1, 2, 3, 64])
def test_habits_save_passes_and_keep_the_text(
    folders: tuple[Path, Path], limit: int, answer_limit: int
) -> None:
    before, after = (
        OrtEngine(folder, guided=False).generate(
            [Request(FACTS[0], 32, limit, answer_limit=answer_limit)]
        )[0]
        for folder in folders
    )
    for field in ("text", "thinking_tokens", "answer_tokens", "thinking_cut", "finish"):
        assert getattr(after, field) == getattr(before, field)
    assert before.decode_passes is not None
    assert after.decode_passes is not None
    assert after.decode_passes <= before.decode_passes
    if limit == 40:
        assert after.decode_passes <= 3


@pytest.mark.slow
def test_a_folder_may_learn_again_in_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cases = many_cases(tmp_path)
    out = tmp_path / "again"
    add_guesses(GuessesConfig(artifact=folders[1], out=out, cases=cases, count=15))
    first = load_manifest(out)
    add_guesses(GuessesConfig(artifact=out, out=out, cases=cases, count=15))
    again = load_manifest(out, expect="ort-genai")
    assert again.parent == first.parent == load_manifest(folders[0]).parent
    assert (
        again.files
        == first.files
        == load_manifest(folders[0]).files | {GUESSES: first.files[GUESSES]}
    )


@pytest.mark.slow
def test_nothing_is_learnt_without_the_likeliest_or_cases(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    cases = many_cases(tmp_path)
    config = GuessesConfig(artifact=folders[0].parent / "plain", out=tmp_path / "x", cases=cases)
    with pytest.raises(ValueError, match="does not tell the likeliest"):
        add_guesses(config)
    assert not config.out.exists()
    add_guesses(config.model_copy(update={"artifact": folders[0], "count": 2}))
    table = read_habits(config.out, ends=())
    assert len(table) == 0
    with pytest.raises(ArtifactError, match=r"what a pass costs: run .*onnx.speculation --artif"):
        read_cost(config.out)
