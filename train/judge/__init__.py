"""Judges: graders of a verdict against the reference, by rule or by a language model.

By rule is the default and needs nothing. `EndpointJudge` asks an OpenAI-compatible endpoint
(vLLM, TensorRT-LLM, any other). A judge that fails says None, never a grade.
"""

from train.judge.judges import (
    EndpointJudgeSettings,
    JudgeSettings,
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
    "RuleJudgeSettings",
    "Task",
    "make_judge",
]
