"""Judges: graders of a verdict against the reference, by rule or by a language model.

`RuleJudge` needs nothing and is the default. `EndpointJudge` asks an OpenAI-compatible endpoint
(vLLM, TensorRT-LLM, any other). A judge that fails says None, never a grade.
"""

from train.judge.protocol import Grade, Judge, JudgeQuestion, JudgeUnavailableError, Level, Task
from train.judge.settings import EndpointJudgeSettings, JudgeSettings, RuleJudgeSettings

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


def make_judge(settings: RuleJudgeSettings | EndpointJudgeSettings) -> Judge:
    """The judge that the settings describe. Nothing is asked yet."""
    if isinstance(settings, RuleJudgeSettings):
        from train.judge.rule import RuleJudge

        return RuleJudge()
    from train.judge.endpoint import EndpointJudge

    return EndpointJudge(settings)
