"""The routes of administrators: load, promote, roll back, unload and list models.

    POST /admin/load      {"name": "int8", "folder": "demo/ort-w8a8"}         202: it loads now
    POST /admin/promote   {"name": "int8", "role": "canary", "share": 0.05}
    POST /admin/promote   {"name": "int8"}                                    all traffic
    POST /admin/rollback                                                     the canary, or the live
    POST /admin/unload    {"name": "int8"}
    GET  /admin/variants

Every attempt to change something is logged by `serve.audit`: who, what, and how it ended.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ConfigDict, Field

from serve.api.errors import error_responses
from serve.api.schemas import RequestBody
from serve.errors import OverloadedError, RequestError
from serve.variants.lifecycle import Variants
from serve.variants.split import Name, Role

audit = logging.getLogger("serve.audit")

RESPONSES = error_responses(
    400,
    401,
    own={
        403: "Not an administrator's key",
        404: "No such variant",
        409: "Not as things stand",
        422: "A field is wrong, or no such model folder",
        503: "The change can't be saved now; see Retry-After",
    },
)


class NotAllowedError(RequestError):
    """A request for administration without an administrator's key."""

    status = 403


class LoadRequest(RequestBody):
    """A model to load beside what serves."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "candidate", "folder": "demo/ort-w8a8"}]}
    )

    name: Name
    """What to call it: in metrics, logs and replies."""

    folder: Annotated[str, Field(min_length=1, max_length=300)]
    """Its folder below the models folder."""

    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The hash of its manifest.json, to load that one and no other."""


class PromoteRequest(RequestBody):
    """Traffic for a variant that is loaded."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "candidate", "role": "canary", "share": 0.1}]}
    )

    name: Name
    """The variant."""

    role: Role = "live"
    """live: all traffic. canary: a share, taken back when it does worse. weight: a share for good,
    beside the others. shadow: copies of a share, whose answers nobody gets."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """From 0 to 1; for every role but live."""

    force: bool = False
    """Even if its gate refused it, its warm-up answer was no verdict, or it was rolled back."""


class UnloadRequest(RequestBody):
    """A variant to end."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "candidate"}]})

    name: Name
    """The variant."""


def require_admin(request: Request) -> None:
    """Admit a request that `KeyGuard` recorded as coming with an administrator's key.

    Raises NotAllowedError otherwise, also where that middleware is missing or keys are off.
    """
    record = getattr(request.state, "api_key", None)
    if record is None or record.role != "admin":
        raise NotAllowedError("forbidden", "this needs a key with the role admin")


def make_router(variants: Variants) -> APIRouter:
    """The routes, for administrators only."""
    router = APIRouter(prefix="/admin", dependencies=[Depends(require_admin)], responses=RESPONSES)

    @router.post("/load", status_code=202)
    async def load(body: LoadRequest, request: Request) -> dict[str, Any]:
        """Verify a model folder and load it beside what serves; look at /admin/variants."""
        asked = {"variant": body.name, "model_folder": body.folder}
        async with _audited(request, "load", asked):
            await variants.load(body.name, body.folder, body.manifest_sha256)
        return variants.describe()

    @router.post("/promote")
    async def promote(body: PromoteRequest, request: Request) -> dict[str, Any]:
        """Give a loaded variant traffic, from the next request on."""
        asked = {"variant": body.name, "role": body.role, "share": body.share, "force": body.force}
        async with _audited(request, "promote", asked):
            await variants.promote(body.name, body.role, body.share, force=body.force)
        return variants.describe()

    @router.post("/rollback")
    async def rollback(request: Request) -> dict[str, Any]:
        """End the canary, or go back to the model that was live before."""
        asked: dict[str, Any] = {}
        async with _audited(request, "rollback", asked):
            asked["variant"] = await variants.rollback()
        return variants.describe()

    @router.post("/unload")
    async def unload(body: UnloadRequest, request: Request) -> dict[str, Any]:
        """Take a variant's traffic away; its workers end when they have finished."""
        async with _audited(request, "unload", {"variant": body.name}):
            await variants.unload(body.name)
        return variants.describe()

    @router.get("/variants")
    async def show() -> dict[str, Any]:
        """What is loaded, how traffic is split, and how a canary compares up to now."""
        return variants.describe()

    return router


@asynccontextmanager
async def _audited(request: Request, action: str, asked: dict[str, Any]) -> AsyncIterator[None]:
    record = getattr(request.state, "api_key", None)
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except RequestError as fault:
        outcome = fault.reason
        raise
    except OSError as error:
        outcome = "unwritable"
        audit.error("the plan can't be written: %s", error.strerror)
        raise OverloadedError(
            "plan_unwritable", "it can't be written down now, so nothing was changed", 30.0
        ) from None
    finally:
        who = None if record is None else record.id
        extra = {
            "action": action,
            "outcome": outcome,
            "key": who,
            "request_id": getattr(request.state, "request_id", None),
            **asked,
        }
        audit.info("admin %s: %s", action, outcome, extra=extra)
