from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.build.fingerprint import (
    PERMUTATIONS,
    hash_grams,
    hash_grams_up_to,
    normalise_for_comparison,
    sign_texts,
)


def test_layout_and_masked_names_are_not_compared():
    first = normalise_for_comparison("张某某，于 ２０２０年\n盗窃××手机。")
    assert first == normalise_for_comparison("张某于2020年，盗窃手机") == "张于2020年盗窃手机"


@given(text=st.text(max_size=40), size=st.integers(1, 15))
def test_equal_grams_and_only_these_have_equal_hashes(text, size):
    hashes = hash_grams(text, size)
    grams = [text[i : i + size] for i in range(max(1, len(text) - size + 1))]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))


def test_hashes_are_the_same_in_another_process():
    code = (
        "from curt.corpus.build.fingerprint import hash_grams; print(hash_grams('盗窃手机一部', 3))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(hash_grams("盗窃手机一部", 3))


def test_a_signature_depends_on_its_text_alone():
    together = sign_texts(["盗窃手机一部价值三千元", "", "醉酒驾驶"])
    assert together.shape == (3, PERMUTATIONS)
    assert np.array_equal(together[2:], sign_texts(["醉酒驾驶"]))
    assert sign_texts([]).shape == (0, PERMUTATIONS)


def test_signatures_estimate_the_jaccard_similarity():
    letters = [chr(0x4E00 + i) for i in range(1000)]
    first, second = "".join(letters), "".join(letters[:500]) + "".join(reversed(letters[500:]))
    signatures = sign_texts([first, second])
    assert abs(np.mean(signatures[0] == signatures[1]) - 1 / 3) < 0.13  # half of each is shared


@given(st.text(min_size=1, max_size=30), st.integers(1, 5))
def test_hashing_several_sizes_at_once_changes_none(text: str, largest: int) -> None:
    together = hash_grams_up_to(text, largest)
    assert len(together) == min(largest, len(text))
    for size, hashes in enumerate(together, 1):
        assert hashes.tolist() == hash_grams(text, size).tolist()
