"""Who may come in, what every reply says to browsers, and what a key file survives."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from serve.api.errors import install_handlers
from serve.app import create_app
from serve.edge.context import RequestContext
from serve.edge.headers import SafeHeaders, allow_origins
from serve.edge.keys import (
    KeyFile,
    KeyGuard,
    KeyRecord,
    KeyTable,
    Role,
    add_key,
    main,
    make_key,
    open_keys,
    read_keys,
    revoke_key,
)
from serve.metrics import Metrics
from serve.settings import Settings
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_pool import FakePool, generation


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def new_key(path: Path, role: Role = "predict", expires: datetime | None = None) -> str:
    key, record = make_key("test", role, expires)
    add_key(path, record)
    return key


def make_app(keys: KeyFile | None, registry: CollectorRegistry | None = None) -> FastAPI:
    app = FastAPI()
    install_handlers(app)

    @app.post("/predict")
    @app.get("/admin/models")
    @app.get("/new-route-nobody-thought-of")
    @app.get("/livez")
    async def who(request: Request) -> dict[str, str | None]:
        record: KeyRecord | None = getattr(request.state, "api_key", None)
        return {"key": record.id if record else None}

    app.add_middleware(KeyGuard, keys=keys, registry=registry)
    app.add_middleware(RequestContext, metrics=Metrics())
    return app


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens_what_its_role_grants_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    user, admin = new_key(path), new_key(path, "admin")
    registry = CollectorRegistry()
    client = AsgiClient(make_app(KeyFile(path), registry))
    cases = [
        ("POST", "/predict", user, 200), ("POST", "/predict", admin, 200),
        ("POST", "/predict", "", 401), ("POST", "/predict", user + "x", 401),
        ("GET", "/admin/models", user, 403), ("GET", "/admin/models", admin, 200),
        ("GET", "/admin/models", "", 401), ("GET", "/new-route-nobody-thought-of", "", 401),
        ("GET", "/livez", "", 200), ("GET", "/nowhere", "", 401), ("GET", "/nowhere", user, 404),
    ]  # fmt: skip
    for method, address, key, status in cases:
        response = client.request(method, address, headers=bearer(key) if key else {})
        assert (address, key[-3:], response.status_code) == (address, key[-3:], status)
    shown = generate_latest(registry).decode()
    assert 'curt_auth_refused_total{reason="missing"} 4.0' in shown
    assert 'curt_auth_refused_total{reason="role"} 1.0' in shown


def test_a_refusal_is_an_error_reply_with_an_id(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    new_key(path)
    client = AsgiClient(make_app(KeyFile(path)))
    response = client.post("/predict", headers={"X-Request-ID": "r-1", **bearer("curt_x_y")})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "unauthorized"
    assert response.json()["request_id"] == response.headers["x-request-id"] == "r-1"


def test_the_log_names_the_key_by_id_and_never_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    key = new_key(path)
    with caplog.at_level(logging.DEBUG):
        client = AsgiClient(make_app(KeyFile(path)))
        assert client.post("/predict", headers={"X-API-Key": key}).json()["key"] == key[5:13]
    (line,) = [r for r in caplog.records if r.name == "serve.access"]
    assert vars(line)["key"] == key[5:13]
    assert not [r for r in caplog.records if key[14:] in str(vars(r))]


def test_without_keys_all_may_ask_and_none_may_administer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        keys = open_keys(None)
    assert "API keys are off" in caplog.text
    assert "CURT_KEYS_FILE" in caplog.text
    client = AsgiClient(make_app(keys))
    assert client.post("/predict").status_code == 200
    refused = client.get("/admin/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_needs_keys")


def test_the_file_holds_no_key_and_equal_names_get_different_salts(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = [new_key(path), new_key(path)]
    text = path.read_text(encoding="utf-8")
    assert not [key for key in keys if key in text or key[14:] in text]
    first, second = read_keys(path).keys
    assert first.salt != second.salt
    assert all(len(key[14:]) >= 43 for key in keys)  # 256 bits in base64


def test_a_change_of_the_file_is_seen_within_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    old = new_key(path)
    keys = KeyFile(path, clock)
    new = new_key(path)
    assert keys.find(new.encode()) is None
    clock.now_s += 1.0
    assert keys.find(new.encode()) is not None
    revoke_key(path, old[5:13])
    clock.now_s += 1.0
    assert keys.find(old.encode()) is None
    assert keys.find(new.encode()) is not None


@pytest.mark.parametrize("content", [b"", b"{", b'{"keys": [{"id": "x"}]}', b"\xff\xfe", None])
def test_a_broken_file_leaves_the_keys_read_before(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    key = new_key(path)
    keys = KeyFile(path, clock)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    clock.now_s += 1.0
    assert keys.find(key.encode()) is not None
    assert "keeping the API keys read before" in caplog.text
    with pytest.raises(ValueError, match=re.escape(str(path))):
        KeyFile(path)


def test_a_key_expires(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    now = datetime.now(UTC)
    over = new_key(path, expires=now - timedelta(seconds=1))
    valid = new_key(path, expires=now + timedelta(minutes=1))
    keys = KeyFile(path)
    assert keys.find(over.encode()) is None
    assert keys.find(valid.encode()) is not None


@hypothesis_settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_made_up_key_is_let_in_or_breaks_anything(presented: bytes) -> None:
    assert _TWO_KEYS.find(presented) is None
    assert _TWO_KEYS.find(b"curt_" + _KNOWN_ID + b"_" + presented) is None


@pytest.fixture(scope="module", autouse=True)
def two_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _TWO_KEYS, _KNOWN_ID
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    _KNOWN_ID = new_key(path)[5:13].encode()
    new_key(path)
    _TWO_KEYS = KeyFile(path)


_TWO_KEYS: KeyFile
_KNOWN_ID: bytes


def test_the_record_of_nobody_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(KeyTable().model_dump_json())
    keys = KeyFile(path)
    assert keys.find(b"") is None
    assert keys.find(b"curt_00000000_") is None


def test_checking_a_key_takes_far_less_than_half_a_millisecond(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = new_key(path).encode()
    keys = KeyFile(path)
    times_s = []
    for _ in range(500):
        start_s = time.perf_counter()
        found = keys.find(key)
        times_s.append(time.perf_counter() - start_s)
        assert found is not None
    assert sorted(times_s)[250] < 0.0005


def test_keys_made_at_once_are_all_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_key(path), range(24)))
    keys = KeyFile(path)
    assert [key for key in made if keys.find(key.encode()) is None] == []
    json.loads(path.read_bytes())


def test_who_may_read_the_file_stays_as_its_owner_set_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    new_key(path)
    path.chmod(0o640)
    new_key(path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_command_prints_a_key_that_works_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    command = [sys.executable, "-m", "serve.edge.keys"]
    environment = os.environ | {"CURT_KEYS_FILE": str(path)}
    made = subprocess.run(
        [*command, "new", "--name", "书记员", "--role", "admin", "--days", "3",
         "--rate_per_s", "2.5", "--burst", "5", "--weight", "2"],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    key = made.stdout.strip()
    record = KeyFile(path).find(key.encode())
    assert record is not None
    assert (record.name, record.role) == ("书记员", "admin")
    assert (record.rate_per_s, record.burst, record.per_day, record.weight) == (2.5, 5, None, 2)
    assert record.expires is not None
    assert record.expires > datetime.now(UTC) + timedelta(days=2)


def test_the_command_lists_and_revokes_without_showing_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--file", str(tmp_path / "keys.json")]
    main(["new", "--name", "app", *options])
    key = capsys.readouterr().out.strip()
    main(["list", *options])
    listed = capsys.readouterr().out
    assert key[5:13] in listed
    assert "app" in listed
    assert key[14:] not in listed
    main(["revoke", "--id", key[5:13], *options])
    assert KeyFile(tmp_path / "keys.json").find(key.encode()) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["revoke", "--id", "ffffffff"], "no key has the id ffffffff"),
        (["new", "--name", ""], "name"),
        (["new", "--name", "x", "--days", "0"], "use 1 or more"),
        (["new", "--name", "x", "--burst", "1.5"], "burst"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    new_key(path)
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--file", str(path)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# Headers


def headed_app(hsts_s: int = 0, origins: list[str] | None = None) -> FastAPI:
    app = FastAPI()

    @app.post("/predict")
    async def predict() -> dict[str, str]:
        return {}

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse("", headers={"Content-Security-Policy": "default-src 'none'"})

    @app.get("/static-offline-docs/swagger.js")
    async def static() -> HTMLResponse:
        return HTMLResponse("", headers={"Cache-Control": "max-age=60"})

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter([b"data: 1\n\n", b"data: 2\n\n"]))

    allow_origins(app, origins or [])
    app.add_middleware(SafeHeaders, hsts_s=hsts_s)
    return app


def test_every_reply_says_what_browsers_must_not_do() -> None:
    client = AsgiClient(headed_app())
    for response in (client.post("/predict"), client.get("/nowhere"), client.get("/stream")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in response.headers
    assert client.get("/").headers["content-security-policy"] == "default-src 'none'"
    assert client.get("/static-offline-docs/swagger.js").headers["cache-control"] == "max-age=60"


def test_https_is_insisted_on_by_setting_only() -> None:
    client = AsgiClient(headed_app(hsts_s=3600))
    assert client.post("/predict").headers["strict-transport-security"] == "max-age=3600"
    with pytest.raises(ValueError, match="use 0 or more"):
        SafeHeaders(headed_app(), hsts_s=-1)


def test_pages_of_other_sites_may_ask_only_when_listed() -> None:
    listed, unlisted = "https://court.example:8443", "https://evil.example"
    preflight = {"Access-Control-Request-Method": "POST"}
    for origins, origin, allowed in (
        ([], listed, False), ([listed], listed, True), ([listed], unlisted, False),
    ):  # fmt: skip
        client = AsgiClient(headed_app(origins=origins))
        headers = {"Origin": origin}
        for response in (
            client.post("/predict", headers=headers),
            client.request("OPTIONS", "/predict", headers=headers | preflight),
        ):
            given_origin = response.headers.get("access-control-allow-origin")
            assert (given_origin == origin) is allowed
            assert given_origin in (origin, None)


@pytest.mark.parametrize("origin", ["*", "https://*", "court.example", "https://a.b/path", "null"])
def test_an_origin_that_names_nobody_in_particular_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="name each as"):
        allow_origins(FastAPI(), [origin])


def test_the_real_application_takes_guard_and_headers(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = new_key(path)
    shut = settings.model_copy(update={"keys_file": path})
    client = AsgiClient(create_app(shut, FakePool(generation("x"))))
    body = {"fact": "被告人张某窃取手机一部，价值3000元。"}
    assert client.post("/predict", json=body).status_code == 401
    answered = client.post("/predict", json=body, headers=bearer(key))
    assert answered.status_code == 200
    assert answered.headers["cache-control"] == "no-store"
    assert client.get("/livez").status_code == client.get("/docs").status_code == 200
