"""Which export to serve."""

from __future__ import annotations

import pytest

from compress.onnx.fastest import FastestConfig, choose_fastest, work
from curt.config import load_config
from tests.compress.onnx.exports import export


def row(prefill: float, decode: float, kl: float) -> dict[str, float]:
    return {
        "prefill_tokens_per_s_1_threads": prefill, "decode_tokens_per_s_1_threads": decode, "kl": kl
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "w8a8"),  # 250 tokens read weigh more than 25 written
        ({"w8a8": row(200, 30, 0.2)}, "int8"),  # too far from its parent
        ({"int8": row(1, 1, 0.3), "w8a8": row(200, 30, 0.2), "int4": row(80, 90, 0.1)}, "int4"),
    ],
)
def test_a_whole_request_counts_and_how_near_it_is(changes, chosen):
    measured = {"int4": row(80, 90, 0.04), "int8": row(100, 60, 0.01), "w8a8": row(200, 30, 0.02)}
    assert choose_fastest(measured | changes, FastestConfig(artifacts=["a"])) == chosen


def test_what_two_threads_do_is_a_measurement_of_its_own():
    two = {"prefill_tokens_per_s_2_threads": 150, "decode_tokens_per_s_2_threads": 90}
    measured = {"int4": row(80, 90, 0.04) | two, "w8a8": row(200, 30, 0.02)}
    measured["w8a8"] |= dict.fromkeys(two, 40)
    assert choose_fastest(measured, FastestConfig(artifacts=["a"])) == "w8a8"
    told = load_config(FastestConfig, ["--artifacts", '["a"]', "--threads", "2"])
    assert choose_fastest(measured, told) == "int4"


def test_the_folder_is_printed_alone(micro_model, tmp_path, capsys):
    artifact = export(micro_model, tmp_path / "fp32")
    work(FastestConfig(artifacts=[artifact]))
    assert capsys.readouterr().out == f"{artifact}\n"
