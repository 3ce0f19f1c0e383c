"""`GET /`: the page, sent as one document so that it loads with nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import get_args

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from curt.law.verdict import MAX_MONTHS, TermKind

FOLDER = Path(__file__).parent
STYLE_TAG = '<link rel="stylesheet" href="page.css">'
SCRIPT_TAG = '<script src="page.js"></script>'
KINDS_TAG = '<script type="application/json" id="kinds">{}</script>'


def build_page() -> tuple[str, str]:
    """The page with style and script inside it, and its content security policy.

    The policy names style and script by their hashes: no other inline code runs.
    """
    markup, style, script = (_read(name) for name in ("page.html", "page.css", "page.js"))
    kinds = json.dumps({kind: MAX_MONTHS.get(kind, 0) for kind in get_args(TermKind)})
    for tag, inline in (
        (STYLE_TAG, f"<style>{style}</style>"),
        (SCRIPT_TAG, f"<script>{script}</script>"),
        (KINDS_TAG, KINDS_TAG.replace("{}", kinds)),
    ):
        assert markup.count(tag) == 1, tag
        markup = markup.replace(tag, inline)
    policy = (
        f"default-src 'none'; connect-src 'self'; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return markup, policy


def make_router() -> APIRouter:
    """The route."""
    page, policy = build_page()
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return router


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
