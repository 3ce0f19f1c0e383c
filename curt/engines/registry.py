"""Every engine there is, by name: what `CURT_ENGINE` may say and what runs which model folder.

A new engine touches its own file, the dict below and its test. The classes import onnxruntime,
torch and the tokenizers only once a folder is opened, so that looking one up costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from curt.artifact import ArtifactError, Format, load_manifest
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import StreamingEngine
from curt.engines.remote import RemoteModel, TensorRtLlmModel, VllmModel
from curt.engines.tokenizer import PromptTokenizer
from curt.engines.transformers import TransformersEngine


class LocalEngine(StreamingEngine, Protocol):
    """An engine that loads a model folder into its own process."""

    formats: ClassVar[tuple[Format, ...]]
    """The formats of model folders it loads."""
    is_remote: ClassVar[bool]
    """Whether it runs elsewhere; where not, a server gives it worker processes."""
    serves: ClassVar[bool]
    """Whether a server may run it; where not, it is for evaluation."""

    tokenizer: PromptTokenizer

    def __init__(self, folder: Path | str, **options: Any) -> None: ...


ENGINES: Mapping[str, type[LocalEngine] | type[RemoteModel]] = {
    "onnxruntime": OrtEngine,
    "transformers": TransformersEngine,
    "vllm": VllmModel,
    "tensorrt-llm": TensorRtLlmModel,
}


def serving_engine(name: str) -> type[LocalEngine] | type[RemoteModel]:
    """The engine that a server runs under this name. Raises ValueError where it runs none."""
    served = [each for each, engine in ENGINES.items() if engine.serves]
    if name not in served:
        raise ValueError(f"no engine {name!r} for serving: use one of {', '.join(served)}")
    return ENGINES[name]


def open_engine(folder: Path, *, threads: int = 1, batch: int = 100) -> LocalEngine:
    """Load a folder into the engine that its manifest calls for.

    Of the options each engine takes those that mean something to it: `batch` is how many sequences
    it runs at once. Raises ArtifactError when no engine in this process runs the folder's format.
    """
    kind = load_manifest(folder).format
    for engine in ENGINES.values():
        if kind in engine.formats and not issubclass(engine, RemoteModel):
            return engine(folder, threads=threads, batch=batch)
    raise ArtifactError(f"{folder} holds {kind}, which no engine on this machine runs")
