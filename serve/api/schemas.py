"""The bodies of requests and replies of `POST /predict` and `POST /predict/batch`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from curt.corpus.kinds import Kind
from curt.law.statutes import STATUTE_VERSIONS
from curt.law.verdict import TermKind
from serve.answering.checks import Caution, OnUnusable
from serve.answering.confidence import Confidence
from serve.served import DegradedReason, Model, Source
from serve.settings import MAX_BATCH_CASES, MAX_DEADLINE_MS, MIN_DEADLINE_MS

Task = Literal["charge", "article", "term", "ruling"]

API_VERSION = "2.1"  # of routes and schemas: the first number changes when a client must
ALL_TASKS: tuple[Task, ...] = ("charge", "article", "term", "ruling")
NOTICE = "本结果由模型生成，仅供参考，不构成法律意见，不能代替法官裁判。"

EXAMPLE: dict[str, Any] = {
    "fact": "2020年3月5日，被告人张某在某市某超市窃取他人现金8000元，归案后如实供述，认罪认罚。",
    "deadline_ms": 400,
}
BATCH_EXAMPLE: dict[str, Any] = {
    "cases": [
        {"id": "theft", "fact": EXAMPLE["fact"]},
        {
            "id": "drunk-driving",
            "fact": "2021年6月1日，被告人李某酒后驾驶轿车，经鉴定其血液中乙醇含量为156mg/100ml。",
        },
    ],
    "deadline_ms": 2000,
}


class RequestBody(BaseModel):
    """A body that a client sends. An unknown field is refused with the names of the known ones."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, data: Any) -> Any:
        # pydantic's own error would name the unknown field, which is the client's text.
        fields = cls.model_fields
        if isinstance(data, dict) and not data.keys() <= fields.keys():
            required_first = sorted(fields, key=lambda name: not fields[name].is_required())
            raise ValueError(f"an unknown field: use only {', '.join(required_first)}")
        return data


def _read_day(text: Any) -> datetime.date:
    first, last = min(STATUTE_VERSIONS.values()), datetime.date.today()
    try:
        day = datetime.date.fromisoformat(text)
    except (TypeError, ValueError):
        day = datetime.date.min
    if not first <= day <= last:  # the text itself is the client's
        raise ValueError(f"write a day from {first} to {last} as YYYY-MM-DD, or leave it out")
    return day


DeedDay = Annotated[datetime.date, BeforeValidator(_read_day)]


class Asked(RequestBody):
    """What is asked of every case: the time an answer may take, and what to tell."""

    deadline_ms: int | None = Field(None, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS)
    """Milliseconds within which to answer; the server's default (400) when left out."""

    tasks: list[Task] = Field(list(ALL_TASKS), min_length=1, max_length=len(ALL_TASKS))
    """Which parts of the verdict to return; the others are null."""

    include_reasoning: bool = True
    """Whether to return the model's reasoning."""

    on_unusable: OnUnusable = "warn"
    """What to do with a text that seems to be no prosecution at first instance: a verdict with a
    warning, or 422 with its kind as the code. Another language and Taiwan's law get 422 anyway."""

    defendants: Literal["one", "each"] = "one"
    """Whether a fact that names several defendants gets one verdict, or one for each: the results
    are then those of a batch, each of the facts as they concern that defendant."""

    top_k: int = Field(default=3, ge=1, le=20)
    """How many charges to give a probability for, where the server knows any."""

    on_low_confidence: Literal["answer", "interval"] = "answer"
    """What to give where the verdict is probably wrong: the same with a warning, or no term, fine
    and ruling, and the interval in `confidence` for the term. Likewise where the fact is unlike
    those that probabilities were fitted on (`unfamiliar_text`), with no interval."""


class PredictRequest(Asked):
    """Facts of one case and the time an answer may take."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    fact: str
    """The facts found, in Chinese."""

    date: DeedDay | None = None
    """The day of the deed, whose law the verdict is held against; else the fact's own."""

    @model_validator(mode="before")
    @classmethod
    def _only_one_case(cls, data: Any) -> Any:
        if isinstance(data, dict) and "cases" in data:
            raise ValueError("one case goes here, as `fact`: send `cases` to POST /predict/batch")
        return data


class StreamRequest(PredictRequest):
    """What is asked of a stream, which answers for one."""

    @field_validator("defendants")
    @classmethod
    def _one(cls, asked: str) -> str:
        if asked != "one":
            raise ValueError("a stream answers for one: ask POST /predict for each")
        return asked


class BatchCase(RequestBody):
    """One of several cases."""

    id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """The client's own name of the case, no two the same; in a form that names nobody."""

    fact: str
    """The facts found, in Chinese."""

    date: DeedDay | None = None
    """The day of the deed, as in `/predict`."""


class BatchRequest(Asked):
    """Facts of several cases, and the time within which all of them are to be answered."""

    model_config = ConfigDict(json_schema_extra={"examples": [BATCH_EXAMPLE]})

    cases: list[BatchCase] = Field(min_length=1, max_length=MAX_BATCH_CASES)
    """The cases; a server may take fewer at once than this schema allows, 32 by default."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> BatchRequest:
        given = [case.id for case in self.cases if case.id is not None]
        if len(set(given)) < len(given):
            raise ValueError("two cases have the same id: give each its own, or none")
        return self

    def one(self, case: BatchCase, fact: str) -> PredictRequest:
        """The same asked of a single case, or of one defendant's facts of it."""
        options = {name: getattr(self, name) for name in Asked.model_fields}
        return PredictRequest.model_construct(fact=fact, date=case.date, **options)

    @classmethod
    def of(cls, body: PredictRequest) -> BatchRequest:
        """The batch of a single case."""
        options = {name: getattr(body, name) for name in Asked.model_fields}
        case = BatchCase.model_construct(id=None, fact=body.fact, date=body.date)
        return cls.model_construct(cases=[case], **options)


class Charge(BaseModel):
    """A charge: 盗窃, 盗窃罪."""

    name: str
    title: str


class Article(BaseModel):
    """An article of the Criminal Law: 264, 第二百六十四条."""

    id: str
    title: str


class Statutory(BaseModel):
    """How a term stands to the statute; null where several charges are punished together."""

    in_range: bool | None
    tier: str | None


class PredictedTerm(BaseModel):
    """The principal penalty."""

    kind: TermKind
    kind_name: str
    months: int
    probation_months: int
    text: str
    statutory: Statutory


class Law(BaseModel):
    """The law that a verdict is held against: of the deed's day, or the model's own."""

    version: str
    day: datetime.date | None
    told_by: Literal["request", "fact"] | None
    """Who told the day; null where nobody did."""


class Defendant(BaseModel):
    """The verdict on one defendant; parts that were not asked for are null."""

    charges: list[Charge] | None
    articles: list[Article] | None
    term: PredictedTerm | None
    fine_yuan: int | None
    ruling: str | None


class Thinking(BaseModel):
    """How much reasoning there was, in tokens, and how much was allowed."""

    tokens: int
    allowed: int
    stated_budget: int
    cut: bool


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float
    prefill: float
    decode: float
    total: float


class LeftOut(BaseModel):
    """How much of the facts did not stand in the prompt."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    characters: int
    sentences: int
    """Sentences that lack, wholly or in part."""


class ProposedCharge(Charge):
    """A charge with its probability, in steps of a tenth."""

    probability: float


class ProposedTerm(BaseModel):
    """The classifier's term, and the shortest range that holds most of its probability."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    text: str
    """The range in words."""
    answer: str
    """The term that the classifier itself would answer."""
    low_months: int | None
    """Null where that end is not counted in months, such as life imprisonment."""
    high_months: int | None
    """Null as for the low end."""


class Proposed(BaseModel):
    """What the classifier proposed to the model in its prompt."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    charges: list[ProposedCharge]
    """The likeliest first, three at most."""
    articles: list[Article]
    term: ProposedTerm
    harm: str | None
    """What the term starts from: quantities (7600+4100=11700元), or a grade of harm (轻伤二级)."""
    circumstances: list[str]
    """Aggravating and mitigating ones that it found (自首, 累犯)."""


class PredictReply(BaseModel):
    """The answer.

    When `degraded`, `source` tells whether a classifier's verdict stands in, with `confidences`
    (calibrated probabilities for charge, article and term); else `defendants` is empty. Where
    `source` is `overruled`, charges, articles and term are the classifier's in place of others of
    the model, which it was right about more often, and there is no reasoning. With the
    warning `unfamiliar_text` no probability and no interval is given, for none would hold.
    """

    request_id: str
    model: Model
    statute_version: str
    """Of the law that the model was taught."""
    prompt_version: str
    law: Law
    kind: Kind
    """What the text seems to be: the facts of a prosecution at first instance, or something else,
    of which a verdict means little."""
    defendants: list[Defendant]
    reasoning: str | None
    thinking: Thinking
    degraded: bool
    degraded_reason: DegradedReason | None
    source: Source = "model"
    confidences: dict[str, float] | None = None
    confidence: Confidence | None = None
    left_out: LeftOut | None = None
    """What of the facts the model did not read, because they are too long for it; null where it
    read them whole."""
    proposed: Proposed | None = None
    """What the classifier in the model's folder proposed before the model read the facts; null
    where it proposed nothing, the model has no such classifier, or the model did not run."""
    warnings: list[Caution]
    deadline_ms: int
    timings_ms: Timings
    notice: str = NOTICE


class ErrorDetail(BaseModel):
    """What went wrong, for programs and for people."""

    code: str
    message: str


class CaseError(ErrorDetail):
    """Why one case of several has no answer."""

    retry_after_s: int | None = None
    """Seconds after which it may be asked again, where that helps."""


class CaseResult(BaseModel):
    """What became of one case of several: `reply` or `error`, the other is null."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str | None
    index: int
    """Place of the case in the request, from 0."""
    defendant: str | None = None
    """Whom the verdict is on, as the fact writes his name, where each is asked for."""
    fact: str | None = None
    """What was asked for that defendant, where the fact names several."""
    request_id: str
    """The case's own, for feedback."""
    status: int
    """The HTTP status that the case alone would have got."""
    reply: PredictReply | None
    error: CaseError | None


class BatchReply(BaseModel):
    """The results in the order of the cases."""

    request_id: str
    results: list[CaseResult]


class ErrorReply(BaseModel):
    """The body of every error."""

    error: ErrorDetail
    request_id: str
