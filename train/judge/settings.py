"""Which judge, and how to reach it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from curt.config import FrozenModel
from curt.endpoint import EndpointSettings


class RuleJudgeSettings(FrozenModel):
    """Grades by comparing the parsed verdicts."""

    type: Literal["rule"] = "rule"


class EndpointJudgeSettings(EndpointSettings):
    """Grades by asking a language model behind an OpenAI-compatible endpoint."""

    type: Literal["endpoint"] = "endpoint"
    api_key_env: str = "CURT_JUDGE_API_KEY"
    timeout_s: float = Field(30.0, gt=0)
    max_tokens: int = Field(64, ge=8)


JudgeSettings = Annotated[RuleJudgeSettings | EndpointJudgeSettings, Field(discriminator="type")]
