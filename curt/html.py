"""Pages rendered from `curt/templates`: HTML that loads nothing from anywhere, and text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

MISSING = "–"
_MOST_VALUES = 8


def render_html(template: str, **values: Any) -> str:
    """A template with its values, escaped; a value that the template lacks raises.

    `written` is now unless it is given. Filters of our own: `figure(form, missing)` writes a number
    that may be None, `plain` a setting as text, `some` the first values of many.
    """
    return _environment().get_template(template).render(values)


def render_text(template: str, **values: Any) -> str:
    """A template of plain text or Markdown, nothing escaped; see `render_html`."""
    return _environment().get_template(template).render(values)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(figure=_figure, plain=_plain, some=_some)
    environment.globals["written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment


def _figure(value: float | None, form: str = ",.1f", missing: str = MISSING) -> str:
    return missing if value is None else format(value, form)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _some(values: Sequence[Any]) -> str:
    more = f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return ", ".join(map(str, values[:_MOST_VALUES])) + more
