"""The administrators' routes, in a small application of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from serve.api.admin import NotAllowedError, make_router, require_admin
from serve.api.errors import install_handlers
from serve.edge.context import RequestContext
from serve.edge.keys import KeyFile, KeyGuard, add_key, make_key
from serve.metrics import Metrics
from serve.variants.lifecycle import Variants
from tests.serve.variants.test_lifecycle import Works, make_folder, make_variants, settled
from tests.serve.variants.test_router import submit

SECRET = "let me in"


def guard(request: Request) -> None:
    if request.headers.get("x-admin") != SECRET:
        raise NotAllowedError("forbidden", "no")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate(("one", "two", "slow")):
        make_folder(tmp_path / "models" / name, number)
    make_folder(tmp_path / "outside")
    return tmp_path / "models"


@asynccontextmanager
async def serving(
    models: Path, works: Works, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Variants]]:
    variants = make_variants(models, works, **options)
    app = FastAPI()
    app.add_middleware(RequestContext, metrics=Metrics())
    install_handlers(app)
    app.include_router(make_router(variants))
    app.dependency_overrides[require_admin] = guard
    transport = httpx.ASGITransport(app=app)
    await variants.start()
    await settled(variants)
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://curt", headers={"x-admin": SECRET}
        ) as client:
            yield client, variants
    finally:
        await variants.stop()


def test_a_model_goes_from_its_folder_to_all_traffic_and_back(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(models, Works()) as (client, variants):
            reply = await client.post("/admin/load", json={"name": "new", "folder": "two"})
            assert reply.status_code == 202
            assert reply.json()["variants"][1]["state"] == "loading"
            await settled(variants)
            body = {"name": "new", "role": "canary", "share": 0.1}
            reply = await client.post("/admin/promote", json=body)
            assert reply.json()["split"]["trials"] == {"new": {"role": "canary", "share": 0.1}}
            for _ in range(30):
                await submit(variants)
            shown = (await client.get("/admin/variants")).json()
            assert shown["canary"]["errors"]["baseline_requests"] > 20
            assert {each["name"]: each["share"] for each in shown["variants"]} == {
                "default": 0.9, "new": 0.1,
            }  # fmt: skip
            assert (await client.post("/admin/promote", json={"name": "new"})).status_code == 200
            await settled(variants)
            reply = await client.post("/admin/rollback")
            assert reply.status_code == 200
            await settled(variants)
            shown = (await client.get("/admin/variants")).json()
            assert shown["live"] == "default"
            assert (await client.post("/admin/unload", json={"name": "new"})).status_code == 200
            assert str(models.parent) not in str(shown)

    with caplog.at_level(logging.INFO, "serve.audit"):
        asyncio.run(scenario())
    lines = [vars(record) for record in caplog.records if record.name == "serve.audit"]
    assert [line["action"] for line in lines] == [
        "load", "promote", "promote", "rollback", "unload",
    ]  # fmt: skip
    assert {line["outcome"] for line in lines} == {"done"}
    assert lines[0]["model_folder"] == "two"
    assert lines[1]["role"] == "canary"
    assert lines[3]["variant"] == "default"
    assert all(line["request_id"] for line in lines)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/load"),
        ("POST", "/admin/promote"),
        ("POST", "/admin/rollback"),
        ("POST", "/admin/unload"),
        ("GET", "/admin/variants"),
    ],
)
def test_nobody_else_comes_in(models: Path, method: str, path: str) -> None:
    async def scenario() -> None:
        async with serving(models, Works()) as (client, variants):
            body = {"name": "new", "folder": "two"}
            reply = await client.request(method, path, json=body, headers={"x-admin": "guess"})
            assert reply.status_code == 403
            assert list(variants.variants) == ["default"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("load", {"name": "new", "folder": "../outside"}, 422, "bad_folder"),
        ("load", {"name": "new", "folder": "/etc"}, 422, "bad_folder"),
        ("load", {"name": "../new", "folder": "two"}, 422, "invalid_request"),
        ("load", {"name": "new\n", "folder": "two"}, 422, "invalid_request"),
        ("load", {"name": "new", "folder": "two", "x": 1}, 422, "invalid_request"),
        (
            "load",
            {"name": "new", "folder": "two", "manifest_sha256": "0" * 64},
            409,
            "not_loadable",
        ),
        ("load", {"name": "default", "folder": "two"}, 409, "name_taken"),
        ("promote", {"name": "new"}, 404, "unknown_variant"),
        ("promote", {"name": "default"}, 409, "bad_role"),
        ("promote", {"name": "default", "role": "canary", "share": 1.5}, 422, "invalid_request"),
        ("unload", {"name": "default"}, 409, "is_live"),
        ("rollback", {}, 409, "nothing_before"),
    ],
)
def test_what_can_not_be_is_refused_and_noted(
    models: Path,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, Any],
    status: int,
    code: str,
) -> None:
    async def scenario() -> None:
        async with serving(models, Works()) as (client, variants):
            reply = await client.post(f"/admin/{path}", json=body)
            assert reply.status_code == status
            assert reply.json()["error"]["code"] == code
            assert str(models.parent) not in reply.text
            assert list(variants.variants) == ["default"]

    with caplog.at_level(logging.INFO, "serve.audit"):
        asyncio.run(scenario())
    outcomes = [vars(r)["outcome"] for r in caplog.records if r.name == "serve.audit"]
    assert outcomes == ([] if code == "invalid_request" else [code])


def test_a_plan_that_can_not_be_written_is_said_and_changes_nothing(models: Path) -> None:
    async def scenario() -> None:
        state = models.parent / "file" / "state.json"
        async with serving(models, Works(), state=state) as (client, variants):
            await client.post("/admin/load", json={"name": "new", "folder": "two"})
            await settled(variants)
            (models.parent / "file").write_text("")
            reply = await client.post("/admin/promote", json={"name": "new"})
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "plan_unwritable"
            assert variants.split.live == "default"

    asyncio.run(scenario())


def test_by_default_only_an_administrators_key_comes_in(models: Path, tmp_path: Path) -> None:
    keys = {}
    for role in ("admin", "predict"):
        keys[role], record = make_key(role, role)  # type: ignore[arg-type]
        add_key(tmp_path / "keys.json", record)

    async def ask(guarded: bool, key: str | None) -> int:
        variants = make_variants(models, Works())
        app = FastAPI()
        if guarded:
            app.add_middleware(KeyGuard, keys=KeyFile(tmp_path / "keys.json"))
        app.add_middleware(RequestContext, metrics=Metrics())
        install_handlers(app)
        app.include_router(make_router(variants))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://curt") as client:
            return (await client.get("/admin/variants", headers=headers)).status_code

    assert asyncio.run(ask(True, keys["admin"])) == 200
    assert asyncio.run(ask(True, keys["predict"])) == 403
    assert asyncio.run(ask(True, None)) == 401
    assert asyncio.run(ask(False, keys["admin"])) == 403  # without the guard: shut
