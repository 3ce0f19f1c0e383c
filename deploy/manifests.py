"""What stands in the deployment's files, for those who check it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parent
ROOT = DEPLOY.parent
KUBERNETES = DEPLOY / "k8s"
OVERLAYS = tuple(sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir()))
RULES_COPY = KUBERNETES / "components" / "monitoring" / "rules.yaml"

# Code names settings too, but it is typed and tested; here a typo would only show in production.
# What follows a name tells a setting from the start of a longer word.
_SETTING = re.compile(r"\bCURT_[A-Z0-9_]*[A-Z0-9]\b")
_SUFFIXES = {".yaml", ".yml", ".env", ".conf", ".sh"}


def documents_of(text: str) -> list[Any]:
    """The documents of a YAML text, without empty ones."""
    return [document for document in yaml.safe_load_all(text) if document]


def settings_named() -> dict[str, set[str]]:
    """The CURT_ variables that each file of the deployment names, comments included."""
    files = [ROOT / "Dockerfile", *sorted(p for p in DEPLOY.rglob("*") if p.suffix in _SUFFIXES)]
    found = {
        str(file.relative_to(ROOT)): set(_SETTING.findall(file.read_text(encoding="utf-8")))
        for file in files
    }
    return {file: names for file, names in found.items() if names}


def prometheus_rule() -> dict[str, Any]:
    """deploy/rules.yml as the object that the Prometheus operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "curt"},
        "spec": yaml.safe_load((DEPLOY / "rules.yml").read_text(encoding="utf-8")),
    }
