"""How a router's variants stand, for people who run the server."""

from __future__ import annotations

from typing import Any

from serve.variants.router import Router


def describe(router: Router) -> dict[str, Any]:
    """Split, canary and variants, without a path of this machine."""
    split = router.split
    return {
        "live": split.live,
        "split": split.model_dump(),
        "canary": router.canary_figures,
        "variants": [
            {
                "name": variant.name,
                "state": variant.state,
                "ready": variant.pool.ready,
                "share": round(split.share_of(variant.name), 6),
                "in_flight": variant.in_flight,
                "model": variant.identity.model.model_dump(),
                "note": variant.note,
            }
            for variant in router.variants.values()
        ],
    }
