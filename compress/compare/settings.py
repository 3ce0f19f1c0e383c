"""Settings of the report, importable without anything heavy."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from curt.config import Config


class CompareConfig(Config):
    """Settings of `python -m compress.compare`."""

    parent: Path
    """The Hugging Face model folder the artifacts are compared with."""
    artifacts: list[Path]
    """Model folders to choose from, as a JSON list."""
    corpus: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Case file for accuracy and KL; not read with `speed_only`."""
    out: Path
    """Folder for report.json, report.html and the kept results."""
    limit: int | None = None
    """Use only the first so many cases."""
    budget: int | None = None
    """Thinking budget in tokens, stated and enforced; the parent's largest when not given."""
    batch: int = 50
    """Sequences at once, where the engine batches."""
    speed_only: bool = False
    """Sizes and speeds alone, for a model whose weights are random."""
    speed_threads: tuple[int, ...] = (1, 2)
    """Thread counts to measure speed at."""
    speed_rounds: int = 5
    """Rounds of the speed measurement."""
    prompt_tokens: int = 500
    """Prompt length of the speed measurement."""
    decode_tokens: int = 64
    """Tokens decoded after it."""
    kl_prompts: int = 16
    """Prompts to compare next-token distributions on."""
    kl_tokens: int = 96
    """Length limit of the parent's completion of each."""
    seed: int = 0

    @model_validator(mode="after")
    def _names_differ(self) -> CompareConfig:
        names = [folder.resolve().name for folder in (self.parent, *self.artifacts)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more than one folder named {', '.join(twice)}: rename one")
        if not self.artifacts:
            raise ValueError("no artifacts: give at least one folder")
        return self
