"""Print the requirements of a vLLM wheel without its torch family.

The torch packages are installed apart (their builds for CPU carry a local
version that the wheel's exact pins refuse). Needs `packaging`, which pip
brings along; reads the wheel's METADATA and installs nothing.
"""

from __future__ import annotations

import sys
import zipfile
from email.parser import Parser

from pip._vendor.packaging.requirements import Requirement

INSTALLED_APART = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})


def requirements(wheel: str) -> list[str]:
    """The requirement lines that hold on this machine, without extras and torch."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    kept = []
    for line in metadata.get_all("Requires-Dist") or []:
        need = Requirement(line)
        if need.name.lower() in INSTALLED_APART:
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        kept.append(line)
    return kept


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1])) + "\n")
