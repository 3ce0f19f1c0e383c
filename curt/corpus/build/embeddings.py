"""Texts as vectors, for repeats that share their sense and few of their words.

The default needs no hub: latent semantic analysis (Deerwester and others, 1990) of character grams,
fitted on the corpus itself. It knows which wordings go together in these texts and nothing beyond
them. A sentence-embedding model, a hub id or a folder, knows more.

Two cases of one kind are close in any such space, so that closeness alone proves nothing: callers
confirm a pair by the figures that both tell.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from curt.corpus.build.dedup import Repeat, check_threshold, keep_first
from curt.files import write_atomic

Vectors = npt.NDArray[np.float32]
LSA = "lsa"
FIT_TEXTS = 8_000
FEATURES = 60_000
DIMENSIONS = 128
CLUSTER_TEXTS = 4096  # compared with each other, 64 MB of similarities
SEED = 7


class Embedder(Protocol):
    """Gives each text a vector of length 1."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Shape (texts, dimensions)."""
        ...


class LatentSemantics:
    """TF-IDF of character 2- and 3-grams, projected on their main directions."""

    def __init__(self, texts: Sequence[str], dimensions: int = DIMENSIONS) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._weigh = TfidfVectorizer(
            analyzer="char", ngram_range=(2, 3), max_features=FEATURES, sublinear_tf=True,
            dtype=np.float32,
        )  # fmt: skip
        weights = self._weigh.fit_transform(texts)
        dimensions = min(dimensions, min(weights.shape) - 1)
        if dimensions < 1:
            raise ValueError(f"{len(texts)} texts are too few to fit embeddings on")
        self._project = TruncatedSVD(dimensions, random_state=SEED).fit(weights)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Shape (texts, dimensions); a text without a known gram is all zeros."""
        if not texts:
            return np.zeros((0, self._project.n_components), np.float32)
        return _normalise(self._project.transform(self._weigh.transform(texts)))


class SentenceModel:
    """A model of the sentence-transformers library."""

    def __init__(self, name: str) -> None:
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the embedding model {name} can't be had ({type(error).__name__}): give a hub id "
                f"or a folder, or {LSA!r} for the default"
            ) from error

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Shape (texts, dimensions)."""
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension() or 0), np.float32)
        vectors = self._model.encode(list(texts), show_progress_bar=False)
        return _normalise(np.asarray(vectors, np.float32))


def fit_embedder(model: str, texts: Sequence[str], folder: Path) -> None:
    """Make ready what `load_embedder` loads in each worker: nothing for a sentence model.

    Raises ValueError on too few texts.
    """
    if model == LSA:
        write_atomic(folder / "lsa.pickle", pickle.dumps(LatentSemantics(texts)))


def load_embedder(model: str, folder: Path) -> Embedder:
    """The embedder. Raises ValueError when a sentence model can't be had."""
    if model != LSA:
        return SentenceModel(model)
    with open(folder / "lsa.pickle", "rb") as file:
        embedder = pickle.load(file)  # noqa: S301, written by this build
    assert isinstance(embedder, LatentSemantics)
    return embedder


def find_alike(
    vectors: Vectors, threshold: float, confirm: Callable[[int, int], bool]
) -> list[Repeat]:
    """Texts to drop: near a kept earlier one (cosine of at least `threshold`), and `confirm`ed.

    Within clusters of about 4,096 texts, as SemDeDup does (arXiv 2303.09540), so that memory does
    not grow with the corpus; a pair that k-means parts is missed. `confirm` is asked about places
    (later, earlier). Raises ValueError on a threshold outside (0, 1].
    """
    check_threshold(threshold)
    later, earlier, similarities = [], [], []
    for members in _clusters(vectors):
        for start in range(0, len(members), CLUSTER_TEXTS):
            rows = members[start : start + CLUSTER_TEXTS]
            known = members[: start + len(rows)]
            cosine = np.asarray(vectors[rows]) @ np.asarray(vectors[known]).T
            cosine[np.arange(len(rows))[:, None] + start <= np.arange(len(known))] = -1.0
            row, column = np.nonzero(cosine >= threshold)
            pairs = zip(rows[row].tolist(), known[column].tolist(), strict=True)
            sure = np.array([confirm(*pair) for pair in pairs], bool)
            later.append(rows[row][sure])
            earlier.append(known[column][sure])
            similarities.append(cosine[row, column][sure])
    if not later:
        return []
    index = np.concatenate(later)
    order = np.argsort(index, kind="stable")
    return keep_first(index[order], np.concatenate(earlier)[order],
                      np.concatenate(similarities)[order])  # fmt: skip


def find_nearest(vectors: Vectors, held_out: Vectors) -> tuple[npt.NDArray[np.int64], Vectors]:
    """For each text the nearest of the held-out ones and their cosine similarity."""
    if not len(held_out) or not len(vectors):
        return np.zeros(len(vectors), np.int64), np.full(len(vectors), -1, np.float32)
    cosine = vectors @ np.asarray(held_out).T
    nearest = cosine.argmax(axis=1)
    return nearest, cosine[np.arange(len(vectors)), nearest]


def _clusters(vectors: Vectors) -> list[npt.NDArray[np.int64]]:
    """Places of the texts of each cluster, ascending."""
    count = len(vectors) // CLUSTER_TEXTS
    if count < 2:
        return [np.arange(len(vectors))]
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(count, batch_size=CLUSTER_TEXTS, n_init=1, random_state=SEED)
    for start in range(0, len(vectors), CLUSTER_TEXTS * 4):
        batch = vectors[start : start + CLUSTER_TEXTS * 4]
        if len(batch) >= count:
            means.partial_fit(batch)
    labels = np.concatenate(
        [
            means.predict(vectors[start : start + CLUSTER_TEXTS * 4])
            for start in range(0, len(vectors), CLUSTER_TEXTS * 4)
        ]
    )
    return [np.flatnonzero(labels == label) for label in range(count)]


def _normalise(vectors: npt.NDArray[np.floating]) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
