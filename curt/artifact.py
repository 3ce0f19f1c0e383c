"""Model folders that describe themselves.

`manifest.json` is written last; a folder without a valid one is not a model, and nothing in
Curt loads it. `load_manifest` is the one gate.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from curt.config import FrozenModel, flaws_of
from curt.dialogue import GRAMMAR_VERSION, PROMPT_VERSION
from curt.files import sha256, whole_folder, write_json
from curt.law.statutes import STATUTE_VERSION

MANIFEST = "manifest.json"
GATE = "gate.json"
UNLISTED = (MANIFEST, GATE)  # in the manifest: itself, and what `curt.gate` said of the model
READER = "reader"
"""The folder, in a model folder, of the classifier whose candidates stand in its prompts."""
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
    reader: str | None = None
    """SHA-256 of the reader's own manifest: another reader makes other prompts."""
    max_fact_tokens: int
    max_thinking_tokens: int
    config: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, float] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    files: dict[str, str] = Field(default_factory=dict)


@contextlib.contextmanager
def write_artifact(
    folder: Path, describe: Mapping[str, Any], *, reader: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success hash it, write its manifest and rename it.

    `describe` holds the fields of `Manifest` the caller knows; it may be filled in while the
    block runs. Tool versions, time and file hashes are added here. A copy of `reader`, a
    classifier folder, goes along, by default that of the parent: a model is asked as it was
    trained.
    """
    with whole_folder(folder) as temporary:
        yield temporary
        if reader is None and describe.get("parent"):
            reader = Path(Parent.model_validate(describe["parent"]).path) / READER
        if reader and reader.is_dir() and not (temporary / READER).exists():
            shutil.copytree(reader, temporary / READER)
        files = {
            str(path.relative_to(temporary)): sha256(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file() and path != temporary / MANIFEST
        }
        manifest = Manifest(
            **{**describe, "reader": files.get(f"{READER}/{MANIFEST}")},
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
    if manifest.prompt_version not in (PROMPT_VERSION, GRAMMAR_VERSION):
        raise ArtifactError(
            f"{folder} was trained on prompt {manifest.prompt_version}, this code speaks "
            f"{PROMPT_VERSION}: use the matching release or train again"
        )
    if manifest.reader != _hash_reader(folder):
        raise ArtifactError(
            f"{folder} has another reader than the one it was trained with: restore {READER}/ or "
            "make the artifact again"
        )
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{folder} lacks {name}: make the artifact again")
        if sha256(file) != expected:
            raise ArtifactError(f"{file} is not the file that was made: make the artifact again")
    return manifest


def refusal_of(folder: Path) -> str:
    """Why the promotion gate refused this very model; empty where it did not, or was not asked."""
    if not (folder / GATE).is_file():
        return ""
    try:
        verdict = json.loads((folder / GATE).read_bytes())
        if not verdict["refused"] or verdict["manifest_sha256"] != sha256(folder / MANIFEST):
            return ""
        return f"refused by its gate for {', '.join(verdict['refused'])}"
    except (ValueError, KeyError, TypeError):
        return f"without a {GATE} that can be read (run `python -m curt.gate` again)"


def expect_manifest(folder: Path, manifest_sha256: str) -> None:
    """Raise ArtifactError unless the folder's manifest has this hash.

    Called once a folder was loaded, it tells that what was loaded is what was verified before and
    nothing that took its place.
    """
    path = folder / MANIFEST
    if not path.is_file() or sha256(path) != manifest_sha256:
        raise ArtifactError(f"{folder.name} has another manifest than the one asked for")


def _hash_reader(folder: Path) -> str | None:
    manifest = folder / READER / MANIFEST
    return sha256(manifest) if manifest.is_file() else None


def parent_of(folder: Path) -> Parent:
    """A reference to the model folder an artifact is made from."""
    return Parent(path=str(folder), manifest_sha256=sha256(folder / MANIFEST))


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[tool] = importlib.metadata.version(tool)
    return versions
