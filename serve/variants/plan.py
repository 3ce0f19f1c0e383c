"""What is served, as it is written down: a restart comes back with the promoted model.

The file names folders below the models folder, never others, and the hash of each one's manifest,
so that a folder that was changed meanwhile is not taken for the model that was promoted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curt.artifact import MANIFEST, ArtifactError, Format, Manifest, load_manifest
from curt.files import sha256, write_json
from serve.errors import RequestError
from serve.variants.split import Name, Split

logger = logging.getLogger(__name__)

CONFIGURED = "default"  # the variant the server was started with
OWN_FORMATS: tuple[Format, ...] = ("ort-genai",)  # what our own workers load


class BadFolderError(RequestError):
    """A folder that is not a model folder below the models folder."""

    status = 422


class ConflictError(RequestError):
    """What was asked for can't be done as things stand."""

    status = 409


class UnknownVariantError(RequestError):
    """There is no variant of that name."""

    status = 404


class Placed(BaseModel):
    """Where a variant's model lies: a folder below the models folder, None the configured one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str | None
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Plan(BaseModel):
    """Which variants there are to be, how traffic is split, and what a rollback goes back to.

    `configured` is the hash of the manifest the server was started with: with another one, its
    operator has chosen a model anew, and the plan is void.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    configured: str
    split: Split
    placed: dict[Name, Placed]
    previous: Name | None = None

    @model_validator(mode="after")
    def _names_are_placed(self) -> Plan:
        wanted = self.split.names | ({self.previous} if self.previous else set())
        if missing := wanted - self.placed.keys():
            raise ValueError(f"no folder for {', '.join(sorted(missing))}")
        return self


def first_plan(configured: Path) -> Plan:
    """The plan of a server that was never told anything: all to the configured model."""
    digest = sha256(configured / MANIFEST)
    placed = {CONFIGURED: Placed(folder=None, manifest_sha256=digest)}
    return Plan(configured=digest, split=Split(live=CONFIGURED), placed=placed)


def read_plan(path: Path | None, configured: Path) -> Plan:
    """The plan that was written last, or the first one where there is none or it is void.

    Raises ValueError on a file that is no plan: serving another model than the one promoted
    would be worse than not to start.
    """
    fresh = first_plan(configured)
    if path is None or not path.exists():
        return fresh
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        places = [".".join(map(str, each["loc"])) or "the file" for each in error.errors()[:3]]
        raise ValueError(
            f"{path} does not say what to serve: see {', '.join(places)}, or delete it to serve "
            "the configured model"
        ) from None
    if plan.configured != fresh.configured:
        logger.warning("another model is configured than before: what was promoted is void")
        return fresh
    return plan


def write_plan(path: Path | None, plan: Plan) -> None:
    """Write a plan down in one step, unless there is to be no file. Raises OSError."""
    if path is not None:
        write_json(path, plan.model_dump())


def find_folder(models: Path | None, folder: str) -> Path:
    """The model folder of that name below the models folder.

    Raises BadFolderError for whatever lies elsewhere, by `..`, by a link, or as an absolute path.
    What was asked for is not repeated in the message, nor told whether it exists elsewhere.
    """
    if models is None:
        raise BadFolderError("no_models_folder", "no models folder is configured on this server")
    refusal = BadFolderError(
        "bad_folder", "no such model folder: name one below the models folder, such as qwen/int4"
    )
    try:
        root = models.resolve(strict=True)
        found = (root / folder).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # missing, a null byte, a loop of links
        raise refusal from None
    if not found.is_relative_to(root) or found == root or not found.is_dir():
        raise refusal
    return found


def relative_name(models: Path, folder: Path) -> str:
    """A folder below the models folder as the plan names it."""
    return folder.relative_to(models.resolve()).as_posix()


def verify(
    folder: Path, expected_sha256: str | None, formats: Collection[Format] = OWN_FORMATS
) -> tuple[Manifest, str]:
    """The manifest of a folder all of whose files are what it says, and the manifest's hash.

    Raises ArtifactError where a file is missing, altered or not listed, the hash another, or the
    format none of `formats`.
    """
    digest = sha256(folder / MANIFEST) if (folder / MANIFEST).is_file() else ""
    if expected_sha256 and digest != expected_sha256:
        raise ArtifactError(f"{folder.name} has another manifest than the one asked for")
    manifest = load_manifest(folder)
    if manifest.format not in formats:
        raise ArtifactError(
            f"{folder.name} holds {manifest.format}, but {' or '.join(formats)} is needed here"
        )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and name not in manifest.files:
            raise ArtifactError(f"{folder.name} holds {name}, which its manifest does not list")
    return manifest, digest
