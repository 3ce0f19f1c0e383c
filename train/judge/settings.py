"""Which judge, and how to reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from train.judge.protocol import Judge


class RuleJudgeSettings(BaseModel):
    """Grades by comparing the parsed verdicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["rule"] = "rule"


class EndpointJudgeSettings(BaseModel):
    """Grades by asking a language model behind an OpenAI-compatible endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["endpoint"] = "endpoint"
    base_url: str
    """Up to and with /v1."""
    model: str
    """Name the endpoint serves the model under."""
    api_key_env: str = "CURT_JUDGE_API_KEY"
    """Environment variable that holds the key; endpoints without keys need none."""
    timeout_s: float = Field(30.0, gt=0)
    """For one request."""
    retries: int = Field(3, ge=0)
    """After timeouts, lost connections and statuses 408, 409, 429 and 5xx, with growing pauses or
    those the server asks for."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at once."""
    cache: Path | None = None
    """SQLite file of grades, shared by runs."""
    max_tokens: int = Field(64, ge=8)
    """Longest reply."""
    max_failed_share: float = Field(0.2, ge=0, lt=1)
    """Share of the newest questions that may fail before the run is stopped."""
    failure_window: int = Field(200, ge=4)
    """How many questions that share is taken over; judged once a quarter of it is filled."""


JudgeSettings = Annotated[RuleJudgeSettings | EndpointJudgeSettings, Field(discriminator="type")]


def make_judge(settings: RuleJudgeSettings | EndpointJudgeSettings) -> Judge:
    """The judge that the settings describe. Nothing is asked yet."""
    if isinstance(settings, RuleJudgeSettings):
        from train.judge.rule import RuleJudge

        return RuleJudge()
    from train.judge.endpoint import EndpointJudge

    return EndpointJudge(settings)
