"""HTML pages that load nothing from anywhere, rendered from `curt/templates`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

MISSING = "–"


def render_html(template: str, **values: Any) -> str:
    """A template with its values, escaped; a value that the template lacks raises.

    `written` is now unless it is given. Two filters are our own: `figure(form, missing)` writes a
    number that may be None, `plain` a setting as text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "plain": _plain}
    environment.globals["written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(values)


def _figure(value: float | None, form: str = ",.1f", missing: str = MISSING) -> str:
    return missing if value is None else format(value, form)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
