"""Judges: graders of a verdict against the reference, by rule or by a language model.

`RuleJudge` needs nothing and is the default. `EndpointJudge` asks an OpenAI-compatible endpoint
(vLLM, TensorRT-LLM, any other). A judge that fails says None, never a grade.
"""

from train.judge.judges import (
    EndpointJudgeSettings,
    JudgeSettings,
    RuleJudge,
    RuleJudgeSettings,
    make_judge,
)
from train.judge.protocol import Grade, Judge, JudgeQuestion, JudgeUnavailableError, Level, Task

__all__ = [
    "EndpointJudgeSettings",
    "Grade",
    "Judge",
    "JudgeQuestion",
    "JudgeSettings",
    "JudgeUnavailableError",
    "Level",
    "RuleJudge",
    "RuleJudgeSettings",
    "Task",
    "make_judge",
]
