"""What the stages of a run left in its folder; a part that is missing is None or empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from curt.artifact import GATE, MANIFEST, ArtifactError, Manifest, load_manifest
from curt.config import flaws_of
from curt.files import sha256

CLASSIFIER_FORMAT = "fallback-onnx"
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data", ".bin")

T = TypeVar("T")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


Text = Annotated[str, BeforeValidator(_as_text)]


class Part(BaseModel):
    """Base of every part: frozen; fields this page does not show are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ThinkingTokens(Part):
    """Thinking tokens over the cases of an evaluation."""

    mean: float
    p50: float | None = None
    p95: float | None = None


class BudgetRow(Part):
    """One forced thinking budget and the accuracy under it; `n` where fewer cases were used."""

    budget: int
    n: int | None = None
    exact: float
    mean_thinking: float | None = None


class TraitRow(Part):
    """The cases of one kind and the accuracy on them."""

    n: int
    exact: float
    mean_thinking: float | None = None


class Counterfactuals(Part):
    """Cases asked again with one thing changed; of each which kinds of its pairs held."""

    by_kind: dict[str, dict[str, float]] = {}
    cases: list[dict[str, bool]] = []
    classifier: dict[str, dict[str, float]] = {}


class Alone(Part):
    """The classifier's own answers to the same cases; no scores where the model has none."""

    scores: dict[str, float | None] = {}
    exact_cases: list[bool] = []


class WorkedExample(Part):
    """One generated case and what a model made of it."""

    fact: str
    thinking: str = ""
    answer: Text = ""
    reference: Text = ""
    exact: bool


class Evaluation(Part):
    """`eval/<name>.json`."""

    name: str
    n: int = Field(ge=1)
    scores: dict[str, float | None]
    engine: str = ""
    model: str = ""
    corpus: str = ""
    manifest_sha256: str = ""
    corpus_sha256: str = ""
    stated_budget: int | str | None = None
    thinking_tokens: ThinkingTokens | None = None
    thinking_lengths: list[int] = []
    exact_cases: list[bool] = []
    charges: list[str] = []
    classifier: Alone = Alone()
    counterfactuals: Counterfactuals = Counterfactuals()
    by_budget: list[BudgetRow] = []
    by_trait: dict[str, TraitRow] = {}
    examples: list[WorkedExample] = []


class TrainingStep(Part):
    """One row of a training history; stages log different columns."""

    step: float
    loss: float | None = None
    reward: float | None = None
    exact: float | None = None
    eval_exact: float | None = None
    thinking_tokens: float | None = None
    completion_tokens: float | None = None
    entropy: float | None = None
    seconds: float | None = None


class Parity(Part):
    """`<artifact>/parity.json`: agreement with the parent, and speed on one CPU thread."""

    kl: float | None = None
    argmax_agreement: float | None = None
    prefill_tokens_per_s_1_threads: float | None = None
    decode_tokens_per_s_1_threads: float | None = None


class ClassifierPart(Part):
    """`<folder>/manifest.json` of a classifier: the cheapest rival of every model of the run."""

    evaluation: dict[str, float]
    tools: dict[str, str] = {}


class LoadSettings(Part):
    """What the load test was asked to do."""

    slo_p99_ms: float
    max_miss_rate: float
    rate_per_s: float
    deadline_ms: float | None = None


class LoadConfidence(Part):
    """What the load test proves."""

    proven: bool
    statement: str


class LoadVerdict(Part):
    """Pass or fail, and why."""

    passed: bool
    reasons: list[str] = []


class LoadTest(Part):
    """`loadtest.json`."""

    requests: int
    misses: int
    misses_by_reason: dict[str, int] = {}
    latency_ms: dict[str, float | None]
    latencies_ms: list[float] = []
    duration_s: float | None = None
    ended: str = ""
    settings: LoadSettings
    confidence: LoadConfidence
    verdict: LoadVerdict


class StageCost(Part):
    """What `curt.stopwatch` recorded of a stage."""

    seconds: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model folder of the run.

    `weights_bytes` counts the weight files alone; `flaw` says why the manifest cannot be trusted.
    """

    name: str
    weights_bytes: int
    manifest: Manifest | None
    manifest_sha256: str
    flaw: str = ""
    parity: Parity | None = None
    checks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunParts:
    """Everything found of one run."""

    name: str
    evaluations: Mapping[str, Evaluation]
    histories: Mapping[str, list[TrainingStep]]
    artifacts: list[Artifact]
    classifiers: Mapping[str, ClassifierPart]
    load_test: LoadTest | None
    timing: Mapping[str, StageCost]


def read_run(folder: Path) -> RunParts:
    """Read every part that exists under a run folder.

    Raises ValueError when the folder is missing or a part does not have the shape its stage
    writes; the message names the file and field, never the text in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no run folder {folder}: run `make demo` first, or name another --run")
    evaluations = {
        path.stem: read_part(path, Evaluation) for path in sorted((folder / "eval").glob("*.json"))
    }
    histories = {
        path.parent.name: read_part(path, list[TrainingStep])
        for path in sorted(folder.glob("*/history.json"))
    }
    folders = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    classifiers = {
        path.name: read_part(path / MANIFEST, ClassifierPart)
        for path in folders
        if _is_classifier(path)
    }
    load_path, timing_path = folder / "loadtest.json", folder / "timing.json"
    return RunParts(
        name=folder.resolve().name,
        evaluations=evaluations,
        histories={name: rows for name, rows in histories.items() if rows},
        artifacts=[_read_artifact(path) for path in folders if path.name not in classifiers],
        classifiers=classifiers,
        load_test=read_part(load_path, LoadTest) if load_path.is_file() else None,
        timing=read_part(timing_path, dict[str, StageCost]) if timing_path.is_file() else {},
    )


def _is_classifier(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except ValueError:
        return False  # told as a flaw of a model folder
    return isinstance(manifest, dict) and manifest.get("format") == CLASSIFIER_FORMAT


def _read_artifact(folder: Path) -> Artifact:
    manifest, flaw = None, ""
    try:
        manifest = load_manifest(folder)
    except ArtifactError as error:
        flaw = str(error).replace(str(folder), folder.name)
    parity = folder / "parity.json"
    checks: dict[str, str] = {}
    for path in (folder / "verification.json", folder / GATE):
        if path.is_file():
            checks |= _flatten(read_part(path, dict[str, Any]))
    return Artifact(
        name=folder.name,
        weights_bytes=sum(
            file.stat().st_size for file in folder.rglob("*") if file.suffix in WEIGHT_SUFFIXES
        ),
        manifest=manifest,
        manifest_sha256=sha256(folder / MANIFEST),
        flaw=flaw,
        parity=read_part(parity, Parity) if parity.is_file() else None,
        checks=checks,
    )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested results as `a.b: value` lines; lists are left to the file itself."""
    lines: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines |= _flatten(item, f"{prefix}{key}.")
        elif isinstance(item, str | bool | int):
            lines[prefix + key] = str(item)
        elif isinstance(item, float):
            lines[prefix + key] = f"{item:.4g}"
    return lines


def read_part(path: Path, shape: type[T]) -> T:
    """A part. Raises ValueError that names the file and field, never the text in it."""
    try:
        return TypeAdapter(shape).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{path} is not what its stage writes ({flaws_of(error)}): run that stage again, or "
            "remove the file to report without it"
        ) from None
