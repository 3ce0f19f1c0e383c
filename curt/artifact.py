"""Model folders that describe themselves.

`manifest.json` is written last; a folder without a valid one is not a model, and nothing in
Curt loads it. `load_manifest` is the one gate.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from curt.config import FrozenModel, flaws_of
from curt.dialogue import PROMPT_VERSION
from curt.files import sha256, whole_folder, write_json
from curt.law.statutes import STATUTE_VERSION

MANIFEST = "manifest.json"
TOOLS = ("torch", "transformers", "trl", "onnxruntime-genai", "nvidia-modelopt")

Format = Literal["hf", "ort-genai", "trtllm-hf"]


class ArtifactError(ValueError):
    """A model folder that must not be loaded; the message says why and what to do."""


class Parent(FrozenModel):
    """The folder an artifact was made from."""

    path: str
    manifest_sha256: str


class Manifest(FrozenModel):
    """What a model folder is, from what it was made, and the hash of every file in it."""

    format: Format
    precision: str
    stage: str
    base: str
    parent: Parent | None = None
    prompt_version: str = PROMPT_VERSION
    statute_version: str = STATUTE_VERSION
    max_fact_tokens: int
    max_thinking_tokens: int
    config: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, float] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    files: dict[str, str] = Field(default_factory=dict)


@contextlib.contextmanager
def write_artifact(folder: Path, describe: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success hash it, write its manifest and rename it.

    `describe` holds the fields of `Manifest` the caller knows; it may be filled in while the
    block runs. Tool versions, time and file hashes are added here.
    """
    with whole_folder(folder) as temporary:
        yield temporary
        files = {
            str(path.relative_to(temporary)): sha256(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        manifest = Manifest(
            **describe,
            tools=_tool_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=files,
        )
        write_json(temporary / MANIFEST, manifest.model_dump())


def load_manifest(folder: Path | str, *, expect: Format | None = None) -> Manifest:
    """Read and verify a model folder's manifest and the hash of every file it lists.

    Raises ArtifactError when the folder, the manifest or a file is missing or altered, when
    the prompt version is not this code's, or when the format is not the expected one.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give a model folder made by this project")
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}: it is unfinished or not a model folder")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is not a valid manifest ({flaws_of(error)}): make the artifact again"
        ) from None
    if expect and manifest.format != expect:
        raise ArtifactError(f"{folder} holds {manifest.format}, but {expect} is needed here")
    if manifest.prompt_version != PROMPT_VERSION:
        raise ArtifactError(
            f"{folder} was trained on prompt {manifest.prompt_version}, this code speaks "
            f"{PROMPT_VERSION}: use the matching release or train again"
        )
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{folder} lacks {name}: make the artifact again")
        if sha256(file) != expected:
            raise ArtifactError(f"{file} is not the file that was made: make the artifact again")
    return manifest


def parent_of(folder: Path) -> Parent:
    """A reference to the model folder an artifact is made from."""
    return Parent(path=str(folder), manifest_sha256=sha256(folder / MANIFEST))


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[tool] = importlib.metadata.version(tool)
    return versions
