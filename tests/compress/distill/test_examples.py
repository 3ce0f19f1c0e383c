from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from compress.distill.examples import (
    TokenisedExample,
    batch_order,
    from_case,
    from_row,
    is_case_file,
    read_examples,
    split_examples,
)
from curt.corpus.store import read_cases
from curt.corpus.store import write_cases as write_case_file
from curt.dialogue import THINK_END, THINK_START, Prompts, render_answer
from tests.compress.onnx.exports import write_cases
from train.warm_start.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases") / "cases.jsonl", 12)


def read_text(example: TokenisedExample, tokenizer: Any) -> tuple[str, str, str]:
    """Prompt, thinking with its end, answer with the end of turn."""
    ids, cut = example.completion_ids, example.thinking_tokens
    return tuple(tokenizer.decode(part) for part in (example.prompt_ids, ids[:cut], ids[cut:]))


def test_an_example_of_a_case_ends_its_thinking_and_its_turn(micro_model: Path, cases: Path):
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    case = next(read_cases(cases))
    thinking = tokenizer("现金8000元。", add_special_tokens=False)["input_ids"]
    example = from_case(case, tokenizer, Prompts(tokenizer, 200), thinking, 32)
    prompt, thought, answer = read_text(example, tokenizer)
    assert prompt.endswith(f"思考预算：32<|im_end|>\n<|im_start|>assistant\n{THINK_START}")
    assert thought == f"现金8000元。{THINK_END}"
    assert answer == render_answer(case.verdict) + tokenizer.eos_token


def test_an_end_marker_of_several_tokens_is_thinking_too(cases: Path):
    tokenizer = train_tokenizer(["罪名"], vocab_size=400)
    plain = type(tokenizer)(tokenizer_object=_without_marker(tokenizer), eos_token="<|im_end|>")
    row = {"prompt": "问", "completion": f"想{THINK_END}罪名：盗窃"}
    example = from_row(row, plain, "row 1")
    _, thought, answer = read_text(example, plain)
    assert (thought, answer) == (f"想{THINK_END}", "罪名：盗窃<|im_end|>")
    assert len(plain(THINK_END)["input_ids"]) > 1


def _without_marker(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if "think" not in t["content"]]
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["completion", "chosen", "response_1"])
def test_views_are_read_whatever_their_shape(micro_model: Path, tmp_path: Path, suffix, column):
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    rows = [
        {"prompt": "问", column: f"想{THINK_END}罪名：盗窃", "truncated": False},
        {"prompt": "问", column: "想了又想", "truncated": True},
    ]
    path = tmp_path / f"view{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = read_examples(
        path,
        tokenizer,
        Prompts(tokenizer, 9),
        verbosity_weights={},
        per_case=1,
        max_thinking_tokens=9,
        seed=0,
    )
    assert read_text(first, tokenizer) == ("问", f"想{THINK_END}", "罪名：盗窃<|im_end|>")
    assert read_text(second, tokenizer) == ("问", "想了又想", "")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.csv", b"a", "give a .jsonl or .parquet file"),
        ("x.jsonl", None, "no data file"),
        ("x.jsonl", b"", "is empty"),
        ("x.jsonl", b"{", "x.jsonl:1 is no JSON"),
        ("x.jsonl", b"[1]\n", "no JSON object"),
        ("x.jsonl", b'{"prompt": "a", "reward": 1}\n', "row 1 lacks a prompt or a completion"),
        ("x.parquet", b"PAR0", "can't be read"),
    ],
)
def test_data_that_cannot_be_read_is_refused_by_name(
    micro_model: Path, tmp_path: Path, name, content, named
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    with pytest.raises(ValueError, match=named):
        read_examples(
            tmp_path / name,
            tokenizer,
            Prompts(tokenizer, 9),
            verbosity_weights={},
            per_case=1,
            max_thinking_tokens=9,
            seed=0,
        )


def test_held_out_sources_are_learned_by_none():
    examples = [TokenisedExample(f"s{i % 5}", [1] * (i + 1), [2], 0) for i in range(15)]
    learned, measured = split_examples(examples, 2, context=14, seed=0)
    assert {e.source for e in learned}.isdisjoint({e.source for e in measured})
    assert len({e.source for e in measured}) == 2
    assert len(learned) + len(measured) == 13  # two of over 14 tokens are left out
    with pytest.raises(ValueError, match="smaller --held_out"):
        split_examples(examples, 5, context=99, seed=0)


def test_batches_are_alike_in_length_whole_and_seeded():
    lengths = [random.Random(i).randrange(10, 200) for i in range(300)]
    epoch = list(itertools.islice(batch_order(lengths, 8, seed=1), 38))
    assert sorted(i for batch in epoch for i in batch) == list(range(300))
    assert epoch == list(itertools.islice(batch_order(lengths, 8, seed=1), 38))
    assert epoch != list(itertools.islice(batch_order(lengths, 8, seed=2), 38))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in epoch]
    assert sorted(spread)[len(spread) // 2] < 20


def test_parquet_cases_are_told_from_a_view(cases: Path, tmp_path: Path):
    write_case_file(tmp_path / "cases.parquet", read_cases(cases))
    pq.write_table(pa.table({"prompt": ["x"], "completion": ["y"]}), tmp_path / "view.parquet")
    assert is_case_file(tmp_path / "cases.parquet")
    assert not is_case_file(tmp_path / "view.parquet")
