"""Model folders of variants: found, verified, and the promoted one remembered for a restart.

What is remembered is a folder below the models folder, never another, and its manifest's hash, so
that a folder that was changed meanwhile is not taken for the model that was promoted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from pydantic import Field, ValidationError

from curt.artifact import UNLISTED, ArtifactError, Format, Manifest, expect_manifest, load_manifest
from curt.config import FrozenModel, flaws_of
from serve.errors import RequestError
from serve.variants.split import Name

logger = logging.getLogger(__name__)


class VariantError(RequestError):
    """What was asked of variants can't be done; by default because of how things stand now."""

    def __init__(self, reason: str, message: str, status: int = 409) -> None:
        super().__init__(reason, message)
        self.status = status


class Promoted(FrozenModel):
    """The model that was promoted to live, as it is written to disk.

    `configured` is the hash of the manifest the server was started with: with another one, its
    operator has chosen a model anew, and the promotion is void.
    """

    configured: str
    name: Name
    folder: str | None  # below the models folder; None is the configured one
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def read(cls, path: Path | None, configured: str) -> Promoted | None:
        """The last promotion, None where there is none or it is void.

        Raises ValueError on a file that is none: serving another model than the one promoted would
        be worse than not to start.
        """
        if path is None or not path.exists():
            return None
        try:
            promoted = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(
                f"{path} does not say what to serve ({flaws_of(error)}): delete it to serve the "
                "configured model"
            ) from None
        if promoted.configured != configured:
            logger.warning("another model is configured than before: what was promoted is void")
            return None
        return promoted


def find_folder(models: Path | None, folder: str) -> Path:
    """The model folder of that name below the models folder.

    Raises VariantError for whatever lies elsewhere, by `..`, by a link, or as an absolute path.
    The message neither repeats what was asked for nor reveals whether it exists elsewhere.
    """
    if models is None:
        raise VariantError("no_models_folder", "no models folder is configured here", 422)
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


def verify(folder: Path, expected_sha256: str | None, formats: Collection[Format]) -> Manifest:
    """The manifest of a folder, all of whose files are as it says.

    Raises ArtifactError where a file is missing, altered or not listed, the hash another, or the
    format none of `formats`.
    """
    manifest = load_manifest(folder)
    if expected_sha256:
        expect_manifest(folder, expected_sha256)
    if manifest.format not in formats:
        raise ArtifactError(
            f"{folder.name} holds {manifest.format}, but {' or '.join(formats)} is needed here"
        )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in UNLISTED and name not in manifest.files:
            raise ArtifactError(f"{folder.name} holds {name}, which its manifest does not list")
    return manifest
