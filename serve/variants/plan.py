"""What is served, as it is written to disk: a restart comes back with the promoted model.

The file names folders below the models folder, never others, and the hash of each one's manifest,
so that a folder that was changed meanwhile is not taken for the model that was promoted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from curt.artifact import MANIFEST, ArtifactError, Format, Manifest, load_manifest
from curt.config import FrozenModel
from curt.files import sha256, write_json
from serve.errors import RequestError
from serve.variants.split import Name, Split

logger = logging.getLogger(__name__)

CONFIGURED = "default"  # the variant the server was started with
OWN_FORMATS: tuple[Format, ...] = ("ort-genai",)  # what our own workers load


class VariantError(RequestError):
    """What was asked of variants can't be done; by default because of how things stand now."""

    def __init__(self, reason: str, message: str, status: int = 409) -> None:
        super().__init__(reason, message)
        self.status = status


class Source(FrozenModel):
    """Where a variant's model lies: a folder below the models folder, None the configured one.

    The hash is None where any manifest will do, as in a load that named none.
    """

    folder: str | None
    manifest_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class ServingPlan(FrozenModel):
    """Which variants there are to be, how traffic is split, and what a rollback goes back to.

    `configured` is the hash of the manifest the server was started with: with another one, its
    operator has chosen a model anew, and the plan is void.
    """

    version: Literal[1] = 1
    configured: str
    split: Split
    placed: dict[Name, Source]
    previous: Name | None = None

    @model_validator(mode="after")
    def _names_are_placed(self) -> ServingPlan:
        wanted = self.split.names | ({self.previous} if self.previous else set())
        if missing := wanted - self.placed.keys():
            raise ValueError(f"no folder for {', '.join(sorted(missing))}")
        return self

    @classmethod
    def first(cls, configured: Path) -> ServingPlan:
        """The plan of a server before any promotion: all traffic to the configured model."""
        digest = sha256(configured / MANIFEST)
        placed = {CONFIGURED: Source(folder=None, manifest_sha256=digest)}
        return cls(configured=digest, split=Split(live=CONFIGURED), placed=placed)

    @classmethod
    def read(cls, path: Path | None, configured: Path) -> ServingPlan:
        """The plan that was written last, or the first one where there is none or it is void.

        Raises ValueError on a file that is no plan: serving another model than the one promoted
        would be worse than not to start.
        """
        fresh = cls.first(configured)
        if path is None or not path.exists():
            return fresh
        try:
            plan = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            places = [".".join(map(str, each["loc"])) or "the file" for each in error.errors()[:3]]
            raise ValueError(
                f"{path} does not say what to serve: see {', '.join(places)}, or delete it to "
                "serve the configured model"
            ) from None
        if plan.configured != fresh.configured:
            logger.warning("another model is configured than before: what was promoted is void")
            return fresh
        return plan

    def write(self, path: Path | None) -> None:
        """Write it in one step, unless there is to be no file. Raises OSError."""
        if path is not None:
            write_json(path, self.model_dump())


def find_folder(models: Path | None, folder: str) -> Path:
    """The model folder of that name below the models folder.

    Raises VariantError for whatever lies elsewhere, by `..`, by a link, or as an absolute path.
    The message neither repeats what was asked for nor reveals whether it exists elsewhere.
    """
    if models is None:
        problem = "no models folder is configured on this server"
        raise VariantError("no_models_folder", problem, 422)
    try:
        root = models.resolve(strict=True)
        found = (root / folder).resolve(strict=True)
        inside = found.is_relative_to(root) and found != root and found.is_dir()
    except (OSError, ValueError, RuntimeError):  # missing, a null byte, a loop of links
        inside = False
    if not inside:
        problem = "no such model folder: name one below the models folder, such as qwen/int4"
        raise VariantError("bad_folder", problem, 422)
    return found


def verify(
    folder: Path, expected_sha256: str | None, formats: Collection[Format] = OWN_FORMATS
) -> tuple[Manifest, str]:
    """The manifest of a folder, all of whose files are as it says, and the manifest's hash.

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
