"""Copy a model folder from a shared volume and check every hash on the way in.

    MODEL_FOLDER=ort-w8a8 MODEL_MANIFEST_SHA256=... python place_model.py /models /model/current

The manifest holds the hash of every file, and the environment that of the manifest: whoever can
write to the volume can't slip in another model. FALLBACK_FOLDER and FALLBACK_MANIFEST_SHA256, where
given, put the classifier beside it, in /model/fallback. Files that no manifest names stay behind; a
model that its promotion gate refused does too, unless CURT_ALLOW_REFUSED=1.
"""

from __future__ import annotations

import hmac
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from curt.artifact import MANIFEST, ArtifactError, refusal_of
from curt.files import sha256, whole_folder


def place(source: Path, target: Path, manifest_sha256: str) -> None:
    """Copy what the manifest of `source` names; `target` is whole afterwards or as it was.

    Raises ArtifactError when a file is missing or not the one that the hashes name.
    """
    with whole_folder(target) as copy:
        _copy(source, MANIFEST, copy, manifest_sha256)
        files = json.loads((copy / MANIFEST).read_bytes())["files"]
        for name, expected in files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ArtifactError(f"{source}: its manifest names {name!r}, outside of it")
            _copy(source, name, copy, expected)
            if name == "launch.sh":  # of a TensorRT-LLM checkpoint; modes are not copied
                (copy / name).chmod(0o755)


def _copy(source: Path, name: str, target: Path, expected: str) -> None:
    """Copy a file of any size and hash the copy: what is served is what was checked."""
    to = target / name
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source / name, to)
    except OSError as error:
        raise ArtifactError(f"{source / name}: {error.strerror}") from error
    found = sha256(to)
    if not hmac.compare_digest(found, expected):
        raise ArtifactError(f"{source / name} is {found}, not {expected}")


def place_named(volume: Path, target: Path, name: str, environment: Mapping[str, str]) -> None:
    """Place what `<name>_FOLDER` names; its hash stands in `<name>_MANIFEST_SHA256`."""
    folder = environment.get(f"{name}_FOLDER", "")
    expected = environment.get(f"{name}_MANIFEST_SHA256", "").strip().lower()
    if not folder or ".." in Path(folder).parts or Path(folder).is_absolute():
        raise ArtifactError(f"{name}_FOLDER={folder!r}: name a folder of the volume")
    if len(expected) != 64:
        raise ArtifactError(
            f"{name}_MANIFEST_SHA256={expected!r}: give what `sha256sum manifest.json` says"
        )
    refusal = refusal_of(volume / folder)
    if refusal and environment.get("CURT_ALLOW_REFUSED", "").lower() not in ("1", "true"):
        raise ArtifactError(f"{folder} is {refusal}: CURT_ALLOW_REFUSED=1 places it anyway")
    place(volume / folder, target, expected)
    sys.stdout.write(f"{folder} stands in {target}, manifest {expected}\n")


def main(arguments: list[str]) -> None:
    """Place the model, and the classifier where one is named; exits with a message on failure."""
    volume, target = map(Path, arguments)
    try:
        place_named(volume, target, "MODEL", os.environ)
        if os.environ.get("FALLBACK_FOLDER"):
            place_named(volume, target.with_name("fallback"), "FALLBACK", os.environ)
    except ArtifactError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
