from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from compress.compare.choice import Measured, choose, make_rows
from compress.compare.page import make_panels, render_page
from tests.compress.compare.records import measure

SETTINGS: dict[str, Any] = {"budget": 64, "limit": None}


def render(*artifacts: Measured, **settings: Any) -> str:
    rows = make_rows([measure("parent", weights_mb=40, right=160, decode=100.0), *artifacts], 40.0)
    return render_page(rows, choose(rows), {**SETTINGS, **settings})


@pytest.fixture(scope="module")
def page() -> str:
    return render(
        measure("int4", weights_mb=5, right=160, decode=400.0),
        measure("int8", weights_mb=12, right=161, decode=300.0),
        measure("rtn", weights_mb=3, right=150, decode=500.0),
    )


class Loads(HTMLParser):
    """Collects every attribute through which a page could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action", "poster")
            and not (value or "").startswith("#")
        ]
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.found.append(tag)


def test_the_page_loads_nothing(page: str) -> None:
    parser = Loads()
    parser.feed(page)
    assert parser.found == []
    assert re.findall(r"@import|url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_the_default_and_its_rule_are_on_the_page(page: str) -> None:
    assert '<p class="value">int4</p>' in page
    assert "at most 0.5 points" in page
    assert "rtn does not qualify: it loses 5.0 points of exact accuracy" in page
    assert "prefers-color-scheme: dark" in page


def test_a_table_without_a_default_says_so() -> None:
    page = render(measure("int8", weights_mb=12, right=150, decode=300.0))
    assert "none qualifies" in page
    assert "No artifact qualifies: there is no default." in page


def test_names_are_escaped() -> None:
    page = render(measure("<b>x&y", weights_mb=5, right=160, decode=400.0))
    assert "<b>x" not in page
    assert "&lt;b&gt;x&amp;y" in page


def test_a_figure_names_its_front() -> None:
    artifacts = [
        measure("int4", weights_mb=5, right=150, decode=400.0),
        measure("poor", weights_mb=12, right=140, decode=300.0),
    ]
    parent = measure("parent", weights_mb=40, right=160, decode=100.0)
    panels = make_panels(make_rows([parent, *artifacts], 40.0))
    assert [panel.title for panel in panels] == [
        "Exact accuracy against size",
        "Exact accuracy against decode speed",
    ]
    for panel in panels:
        assert panel.sentence.startswith("On the front: parent, int4. Beaten")
        assert panel.sentence.endswith(": poor.")
        assert panel.svg is not None
        assert "var(--series-3)" in panel.svg


def test_a_recipe_tells_when_it_started_from_another_model() -> None:
    one = measure("child", weights_mb=5, right=150, decode=1.0)
    strange = one.identity.model_copy(update={"of_this_parent": False})
    parent = measure("parent", weights_mb=40, right=160, decode=1.0)
    rows = make_rows([parent, one, one.model_copy(update={"identity": strange})], 40.0)
    page = render_page(rows, choose(rows), SETTINGS)
    assert "<tr><th>bits</th><td><code>4</code></td></tr>" in page
    assert page.count("from models/parent</summary>") == 2
    assert page.count("from models/parent (not the parent of this report)</summary>") == 1
