"""More training cases from those that are there: distractors, and the facts in other words.

    python -m curt.corpus augment --corpus artifacts/demo/corpus --out artifacts/demo/corpus-more

Reads a corpus folder and writes another, whole or not at all: the training set with the new cases
behind each original, the dev and test sets byte for byte as they were. What failed a check is not
in it; corpus.json counts it by reason. Facts go to an endpoint only where one is configured and a
paraphrase by it is asked for, without identifying numbers unless `redact` is off.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from curt.config import Config
from curt.corpus.augment.distractors import MOST, NoRoomError, add_distractors
from curt.corpus.augment.local import LocalParaphraser
from curt.corpus.augment.paraphrase import EndpointParaphraser, Paraphraser
from curt.corpus.case import Case
from curt.corpus.store import find_cases, open_case_file, read_cases
from curt.endpoint import EndpointSettings
from curt.files import sha256, whole_folder, write_json

logger = logging.getLogger(__name__)

KEPT_SPLITS = ("dev", "test")
TRAIT = "paraphrase"
_CASES_AT_ONCE = 500


class AugmentConfig(Config):
    """What to add to which corpus."""

    corpus: Path
    """Corpus folder to read."""
    out: Path
    """Corpus folder to write; another than `corpus`."""
    distractors: int = Field(2, ge=1, le=MOST)
    """Sentences with figures that do not count, in each case that gets any."""
    distractor_share: float = Field(0.5, ge=0, le=1)
    """Share of the training cases that come with distractors as well."""
    paraphrases: list[Literal["local", "direct", "back"]] = ["local"]
    """Ways to tell facts in other words: by rule (local), by a model (direct), by way of English
    (back). The last two need `endpoint`."""
    paraphrase_share: float = Field(0.5, ge=0, le=1)
    """Share of the training cases that each way is applied to."""
    endpoint: EndpointSettings | None = None
    """Model that facts are sent to. Facts are personal data: name one you may send them to."""
    redact: bool = True
    """Take telephone, identity card and account numbers and e-mail addresses out before sending."""
    seed: int = 7
    """Which cases, which claims, which words."""

    @model_validator(mode="after")
    def _consistent(self) -> AugmentConfig:
        if self.corpus.resolve() == self.out.resolve():
            raise ValueError(f"out is {self.out}, the corpus itself: give another folder")
        if len(set(self.paraphrases)) < len(self.paraphrases):
            raise ValueError(f"paraphrases {self.paraphrases}: name each way once")
        asks = sorted({"direct", "back"} & set(self.paraphrases))
        if asks and self.endpoint is None:
            raise ValueError(
                f"paraphrases {asks} need an endpoint: give endpoint.base_url and model"
            )
        return self


def write_augmented(config: AugmentConfig) -> None:
    """Augment and say what was added and refused."""
    summary = augment(config)
    logger.info("corpus %s: %s, refused %s", config.out, summary["kinds"], summary["refused"])


def augment(config: AugmentConfig) -> dict[str, Any]:
    """Write the new corpus folder and return what its corpus.json says.

    Raises ValueError when the folder is no corpus, lacks a set or was augmented before, and
    EndpointUnavailableError when the model does not answer; nothing is written then.
    """
    started = time.monotonic()
    described = config.corpus / "corpus.json"
    if not described.is_file():
        raise ValueError(f"{config.corpus} has no corpus.json: give a folder that build wrote")
    parent = json.loads(described.read_text(encoding="utf-8"))
    if "augmentation" in parent:
        raise ValueError(f"{config.corpus} is augmented already: give {parent['parent']['path']}")
    sets = {split: find_cases(config.corpus, split) for split in ("train", *KEPT_SPLITS)}
    if missing := [str(path) for path in sets.values() if not path.is_file()]:
        raise ValueError(f"no {', '.join(missing)}: make the corpus again")
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    paraphrasers = make_paraphrasers(config)
    with whole_folder(config.out) as folder:
        for split in KEPT_SPLITS:
            shutil.copyfile(sets[split], folder / sets[split].name)
        with open_case_file(folder / sets["train"].name) as write:
            for case, kind in tqdm(
                _grow(sets["train"], config, paraphrasers, refused), unit="case"
            ):
                write(json.dumps(case.to_json(), ensure_ascii=False))
                kinds[kind] += 1
        for paraphraser in paraphrasers:
            for reason, count in paraphraser.counts.items():
                if reason.startswith(("refused_", "failed_")):
                    refused[f"{paraphraser.name}: {reason.partition('_')[2]}"] += count
        summary = {
            "config": config.model_dump(mode="json"),
            "parent": {
                "path": str(config.corpus),
                "corpus_sha256": sha256(described),
                "sets_sha256": {split: sha256(path) for split, path in sets.items()},
            },
            "counts": {
                "train": kinds.total(),
                **{split: _count(sets[split]) for split in KEPT_SPLITS},
            },
            "augmentation": True,
            "kinds": dict(kinds),
            "refused": dict(refused),
            "paraphrasers": {p.name: dict(p.counts) for p in paraphrasers},
            "seconds": round(time.monotonic() - started, 1),
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(folder.iterdir())
            },
        }
        write_json(folder / "corpus.json", summary)
    return summary


def make_paraphrasers(config: AugmentConfig) -> list[Paraphraser]:
    """The ways of telling that a configuration names. Nothing is asked yet."""
    made: list[Paraphraser] = []
    for way in config.paraphrases:
        if way == "local":
            made.append(LocalParaphraser(config.seed))
        else:
            assert config.endpoint is not None
            made.append(EndpointParaphraser(config.endpoint, way, redact=config.redact))
    return made


def _grow(
    train: Path, config: AugmentConfig, paraphrasers: Sequence[Paraphraser], refused: Counter[str]
) -> Iterator[tuple[Case, str]]:
    """Every case with its kind, in blocks: originals, then what was made of them."""
    cases = read_cases(train)
    while block := list(islice(cases, _CASES_AT_ONCE)):
        yield from ((case, "original") for case in block)
        for case in _draw(block, config, "distractors", config.distractor_share):
            rng = random.Random(f"{config.seed}:{case.id}:claims")
            try:
                yield add_distractors(case, rng, config.distractors), "distractors"
            except NoRoomError:
                refused["distractors: no room"] += 1
        for paraphraser in paraphrasers:
            drawn = _draw(block, config, paraphraser.name, config.paraphrase_share)
            told = paraphraser.paraphrase([case.fact for case in drawn])
            for case, fact in zip(drawn, told, strict=True):
                if fact is not None:
                    yield _retell(case, fact, paraphraser.name), paraphraser.name


def _draw(block: Sequence[Case], config: AugmentConfig, kind: str, share: float) -> list[Case]:
    """A share of the cases, which ones depending on seed, id and kind alone."""
    return [
        case for case in block if random.Random(f"{config.seed}:{case.id}:{kind}").random() < share
    ]


def _retell(case: Case, fact: str, name: str) -> Case:
    return replace(
        case,
        id=f"{case.id}+{name}",
        fact=fact,
        source=f"{case.source}+{name}",
        traits=(*case.traits, TRAIT),
    )


def _count(path: Path) -> int:
    return sum(1 for _ in read_cases(path))
