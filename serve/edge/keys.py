"""API keys: `python -m serve.edge.keys new --name clerk-app` prints one, once.

The key file holds a salted HMAC-SHA256 of each key, so that the file gives no key away. A key is
256 random bits, which nobody finds by trying however fast the hash is; a slow hash (scrypt) would
only cost every request. The file is read again when it changes; if it is broken then, the keys read
before stay valid.

    python -m serve.edge.keys new --name ops --role admin --days 90
    python -m serve.edge.keys new --name app --rate_per_s 20 --per_day 100000 --weight 2
    python -m serve.edge.keys list
    python -m serve.edge.keys revoke --id 3f9c2a10
"""

from __future__ import annotations

import argparse
import fcntl
import hmac
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Counter
from pydantic import AwareDatetime, Field, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from curt.config import FrozenModel
from curt.files import write_atomic
from serve.edge.context import refuse
from serve.edge.headers import STATIC_PREFIX

logger = logging.getLogger(__name__)

Role = Literal["predict", "admin"]
GRANTS: Mapping[Role, frozenset[Role]] = {
    "predict": frozenset({"predict"}),
    "admin": frozenset({"predict", "admin"}),
}
OPEN_PATHS = frozenset(
    {"/", "/livez", "/readyz", "/health", "/ping", "/metrics", "/docs", "/openapi.json"}
)
ADMIN_PREFIX = "/admin"
DEFAULT_FILE = "keys.json"
FILE_VARIABLE = "CURT_KEYS_FILE"

CHECK_S = 1.0  # how often the file is checked for changes
MAX_KEY_BYTES = 200
ID_BYTES, SECRET_BYTES, SALT_BYTES = 4, 32, 16


class KeyRecord(FrozenModel, use_attribute_docstrings=True):
    """What the file keeps of a key: enough to recognise it, not to reconstruct it."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(min_length=1, max_length=100)
    role: Role
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime
    expires: AwareDatetime | None = None
    rate_per_s: float | None = Field(default=None, gt=0)
    """Cases a second, instead of the server's `rate_per_s`."""
    burst: int | None = Field(default=None, ge=1)
    """Cases at once before that rate holds, instead of `rate_burst`."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Cases under way at once, instead of `max_concurrent`."""
    per_day: int | None = Field(default=None, ge=1)
    """Cases in a day; what was used comes back evenly over a day."""
    weight: float = Field(default=1.0, gt=0, le=1_000)
    """Its part of the workers' time under load, beside that of the other keys."""


LIMITS = ("rate_per_s", "burst", "max_concurrent", "per_day", "weight")


class KeyTable(FrozenModel):
    """The content of a key file."""

    version: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()


_NOBODY = KeyRecord(
    id="0" * 8, name="nobody", role="predict", salt="0" * 32, hash="0" * 64,
    created=datetime.fromtimestamp(0, UTC),
)  # fmt: skip


def make_key(
    name: str, role: Role, expires: datetime | None = None, **limits: float
) -> tuple[str, KeyRecord]:
    """A new key and the record to keep of it, from which the key can't be recovered.

    `limits` are those of `LIMITS` that it has of its own.
    """
    identity, salt = secrets.token_hex(ID_BYTES), secrets.token_bytes(SALT_BYTES)
    key = f"curt_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
    record = KeyRecord(
        id=identity,
        name=name,
        role=role,
        salt=salt.hex(),
        hash=hash_key(key.encode(), salt),
        created=datetime.now(UTC).replace(microsecond=0),
        expires=expires,
        **limits,  # type: ignore[arg-type]  # validated there
    )
    return key, record


def hash_key(key: bytes, salt: bytes) -> str:
    """HMAC-SHA256 of a key under its salt, in hex."""
    return hmac.digest(salt, key, "sha256").hex()


def read_keys(path: Path) -> KeyTable:
    """The records of a key file. Raises ValueError when it is missing or not one."""
    try:
        return KeyTable.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; make one with python -m serve.edge.keys new --name NAME"
        ) from error
    except ValidationError as error:
        places = [".".join(map(str, each["loc"])) or "the file" for each in error.errors()[:3]]
        raise ValueError(f"{path} is no key file: see {', '.join(places)}") from None


def add_key(path: Path, record: KeyRecord) -> None:
    """Append a record to a key file, which is made where there is none."""
    with _locked(path):
        table = read_keys(path) if path.exists() else KeyTable()
        _write(path, KeyTable(keys=(*table.keys, record)))


def revoke_key(path: Path, identity: str) -> KeyRecord:
    """Take a record out of a key file. Raises ValueError when no key has that id."""
    with _locked(path):
        table = read_keys(path)
        gone = [record for record in table.keys if record.id == identity]
        if not gone:
            raise ValueError(f"no key has the id {identity}: see python -m serve.edge.keys list")
        _write(path, KeyTable(keys=tuple(r for r in table.keys if r.id != identity)))
    return gone[0]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock: of two keys made at once, neither may overwrite the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, table: KeyTable) -> None:
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    write_atomic(path, table.model_dump_json(indent=2) + "\n")
    if mode is not None:
        path.chmod(mode)  # as the file's owner had set it


class KeyFile:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError when the file is missing or not a key file."""
        self._path = path
        self._clock = clock
        self._records = {record.id: record for record in read_keys(path).keys}
        self._stamp = _stamp_of(path)
        self._checked_s = clock()
        logger.info("API keys are on: %d keys", len(self._records))

    def find(self, presented: bytes) -> KeyRecord | None:
        """The record of a key, or None where it is unknown, revoked or expired.

        Takes the same time for an unknown id as for a wrong key.
        """
        self._reload_if_changed()
        if len(presented) > MAX_KEY_BYTES:
            return None
        parts = presented.split(b"_", 2)
        identity = parts[1].decode("latin-1") if len(parts) == 3 else ""
        record = self._records.get(identity, _NOBODY)
        digest = hash_key(presented, bytes.fromhex(record.salt))
        if not hmac.compare_digest(digest, record.hash) or record is _NOBODY:
            return None
        if record.expires is not None and record.expires <= datetime.now(UTC):
            return None
        return record

    def _reload_if_changed(self) -> None:
        now_s = self._clock()
        if now_s - self._checked_s < CHECK_S:
            return
        self._checked_s = now_s
        stamp = _stamp_of(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._records = {record.id: record for record in read_keys(self._path).keys}
        except ValueError as error:
            logger.error("keeping the API keys read before: %s", error)
        else:
            logger.info("API keys read again: %d keys", len(self._records))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def open_keys(path: Path | None) -> KeyFile | None:
    """The key file at `path`; None with a warning in the log where no path is given.

    Raises ValueError when the file is not a key file.
    """
    if path is not None:
        return KeyFile(path)
    logger.warning(
        "API keys are off: whoever reaches this server may ask it; set %s", FILE_VARIABLE
    )
    return None


def is_open(path: str) -> bool:
    """Whether a path needs no key and counts against no rate limit."""
    return path in OPEN_PATHS or path.startswith(STATIC_PREFIX)


class KeyGuard:
    """ASGI middleware that admits requests with a key of the role that their path needs.

    Every path but the open ones needs a key, so a new route is closed until someone opens it.
    `state.api_key` is the record of the key. Without a key file every request is admitted, except
    to `/admin`, which is then closed.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyFile | None, registry: CollectorRegistry | None = None
    ) -> None:
        self.app = app
        self._keys = keys
        self._refused = Counter(
            "curt_auth_refused", "Requests refused for their key", ["reason"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        role = _needed_role(scope["path"]) if scope["type"] in ("http", "websocket") else None
        if role is None or (self._keys is None and role != "admin"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if self._keys is None:
            self._refused.labels("no_keys").inc()
            message = f"administration needs API keys: set {FILE_VARIABLE}"
            await refuse(scope, receive, send, 403, "admin_needs_keys", message)
            return
        presented = presented_key(scope)
        record = self._keys.find(presented) if presented else None
        if record is None:
            self._refused.labels("unknown" if presented else "missing").inc()
            message = "send a valid API key: Authorization: Bearer <key>"
            headers = {"WWW-Authenticate": "Bearer"}
            await refuse(scope, receive, send, 401, "unauthorized", message, headers)
            return
        state = scope.setdefault("state", {})
        state["api_key"] = record
        state.setdefault("log", {})["key"] = record.id
        if role not in GRANTS[record.role]:
            self._refused.labels("role").inc()
            message = f"this needs a key with the role {role}"
            await refuse(scope, receive, send, 403, "forbidden", message)
            return
        await self.app(scope, receive, send)


def _needed_role(path: str) -> Role | None:
    if path == ADMIN_PREFIX or path.startswith(ADMIN_PREFIX + "/"):
        return "admin"
    return None if is_open(path) else "predict"


def presented_key(scope: Scope) -> bytes | None:
    """The key that a request shows, valid or not; None where it shows none."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token if scheme.lower() == "bearer" else headers.get("x-api-key")
    return None if given is None else given.strip().encode("latin-1")


def main(argv: Sequence[str] | None = None) -> None:
    """Make, list and revoke keys; exits with status 2 and a message when it can't."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.edge.keys", description="Make, list and revoke API keys."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="print a new key, once, and keep its hash")
    new.add_argument("--name", required=True, help="whose key it is")
    new.add_argument("--role", choices=sorted(GRANTS), default="predict")
    new.add_argument("--days", type=int, help="until it expires; for good by default")
    for limit in LIMITS:
        field = KeyRecord.model_fields[limit]
        new.add_argument(f"--{limit}", type=float, help=field.description)
    revoke = commands.add_parser("revoke", help="take a key back")
    revoke.add_argument("--id", required=True, help="as list shows it")
    for command in (new, revoke, commands.add_parser("list", help="show whose keys there are")):
        default = Path(os.environ.get(FILE_VARIABLE, DEFAULT_FILE))
        command.add_argument("--file", type=Path, default=default, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        sys.stdout.write(_run(arguments))
    except ValidationError as error:
        parser.error("; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors()))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _run(arguments: argparse.Namespace) -> str:
    path: Path = arguments.file
    if arguments.command == "new":
        if arguments.days is not None and arguments.days < 1:
            raise ValueError(f"--days {arguments.days}: use 1 or more")
        expires = datetime.now(UTC) + timedelta(arguments.days) if arguments.days else None
        own = {name: getattr(arguments, name) for name in LIMITS}
        own = {name: value for name, value in own.items() if value is not None}
        key, record = make_key(arguments.name, arguments.role, expires, **own)
        add_key(path, record)
        return key + "\n"
    if arguments.command == "revoke":
        record = revoke_key(path, arguments.id)
        return f"revoked {record.id} ({record.name})\n"
    lines = [
        f"{r.id}  {r.role:7}  {r.created:%Y-%m-%d}  "
        f"{f'{r.expires:%Y-%m-%d}' if r.expires else 'for good':10}  {r.name}\n"
        for r in read_keys(path).keys
    ]
    return "".join(lines)


if __name__ == "__main__":
    main()
