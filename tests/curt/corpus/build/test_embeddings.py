from __future__ import annotations

import numpy as np
import pytest

from curt.corpus.build import embeddings
from curt.corpus.build.embeddings import (
    LatentSemantics,
    SentenceModel,
    find_alike,
    find_nearest,
    fit_embedder,
    load_embedder,
)
from curt.corpus.build.fingerprint import compare_figures, hash_figures
from tests.curt.corpus.build.test_dedup import FACT, OTHER

TEXTS = [FACT, OTHER, FACT[40:] + FACT[:40], OTHER[::-1], "被告人王某非法持有毒品海洛因若干克。"]


def test_the_default_needs_nothing_but_the_texts(tmp_path):
    fit_embedder("lsa", TEXTS, tmp_path)
    vectors = load_embedder("lsa", tmp_path).embed(TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = vectors @ vectors.T
    assert cosine[0, 2] > 0.95  # the same words in another order
    assert cosine[0, 1] < 0.5
    assert np.array_equal(vectors, LatentSemantics(TEXTS).embed(TEXTS))
    assert LatentSemantics(TEXTS).embed([]).shape == (0, vectors.shape[1])


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="too few"):
        LatentSemantics(["一二"])


def test_a_sentence_model_is_loaded_from_a_folder(micro_model, tmp_path):
    fit_embedder(str(micro_model), TEXTS, tmp_path)
    vectors = load_embedder(str(micro_model), tmp_path).embed(TEXTS)
    assert vectors.shape[0] == len(TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert load_embedder(str(micro_model), tmp_path).embed([]).shape == (0, vectors.shape[1])


def test_a_missing_sentence_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere can't be had.*give a hub id or a folder"):
        SentenceModel(str(tmp_path / "nowhere"))


def directions(count, seed=1, width=24):
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("cluster", [10_000, 60])
def test_planted_neighbours_are_found_in_whatever_clusters(monkeypatch, cluster):
    monkeypatch.setattr(embeddings, "CLUSTER_TEXTS", cluster)
    vectors = directions(400)
    noise = directions(40, seed=2) * 0.05
    both = np.concatenate([vectors, vectors[:40] + noise])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    found = {repeat.index: repeat.of for repeat in find_alike(both, 0.99, lambda _, __: True)}
    assert set(found.items()) <= {(400 + place, place) for place in range(40)}
    assert len(found) >= (40 if cluster > 440 else 35)  # k-means may part a pair


def test_only_confirmed_pairs_are_repeats():
    vectors = np.repeat(directions(1), 4, axis=0)
    asked = []

    def confirm(later, earlier):
        asked.append((later, earlier))
        return earlier == 2

    assert [(r.index, r.of) for r in find_alike(vectors, 0.9, confirm)] == [(3, 2)]
    assert sorted(asked) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


def test_the_nearest_held_out_text_is_found():
    held_out = directions(9)
    nearest, cosine = find_nearest(held_out[[4, 7]], held_out)
    assert nearest.tolist() == [4, 7]
    assert np.allclose(cosine, 1)
    assert find_nearest(held_out, held_out[:0])[1].max() == -1


def test_figures_are_compared_with_their_units():
    first = hash_figures("2020年3月5日14时窃取手机1部价值3512元")
    assert compare_figures(first, first) == (6, 1.0)
    shared, share = compare_figures(first, hash_figures("2020年4月5日窃取3部价值3512元"))
    assert shared == 3  # 2020年, 5日, 3512元
    assert share == 3 / 8
    assert compare_figures(hash_figures(""), hash_figures("")) == (0, 0.0)


def test_paraphrased_real_facts_are_near_and_keep_their_figures(real_cases):
    import json
    import random
    import re

    from curt.corpus.build.fingerprint import normalise_for_comparison, sign_texts

    lines = (real_cases / "train.json").read_text(encoding="utf-8").splitlines()[:1500]
    facts = [fact for line in lines if len(fact := json.loads(line)["fact"]) > 80]
    rng = random.Random(1)
    places = rng.sample(range(len(facts)), 200)

    def retell(fact: str) -> str:
        """Neighbouring clauses swapped, common words replaced."""
        clauses = [clause for clause in re.split("(?<=[。；，])", fact) if clause]
        for start in range(0, len(clauses) - 1, 2):
            if rng.random() < 0.7:
                clauses[start : start + 2] = clauses[start + 1], clauses[start]
        text = "".join(clauses)
        for old, new in (("窃取", "盗走"), ("殴打", "打"), ("被告人", "其"), ("将", "把")):
            text = text.replace(old, new)
        return text

    plain = [normalise_for_comparison(fact) for fact in facts]
    told = [normalise_for_comparison(retell(facts[place])) for place in places]
    embedder = LatentSemantics(plain)
    vectors, others = embedder.embed([plain[place] for place in places]), embedder.embed(told)
    near = (vectors * others).sum(axis=1) >= 0.93
    kept = [
        compare_figures(hash_figures(plain[place]), hash_figures(text))
        for place, text in zip(places, told, strict=True)
    ]
    confirmed = np.array([shared >= 4 and share >= 0.5 for shared, share in kept])
    by_words = (sign_texts([plain[p] for p in places]) == sign_texts(told)).mean(axis=1) >= 0.6
    assert np.mean(near & confirmed) >= 0.8
    assert np.mean(by_words) <= 0.5  # what near-duplicate search alone would have found
