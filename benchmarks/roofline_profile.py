"""Which operators a decoded token spends its time in, from ONNX Runtime's own profiler."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curt.engines.onnxruntime_genai import session_config

WARM_TOKENS = 4  # the first passes after a prompt still touch new memory


def profile_decoding(folder: Path, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Microseconds of one decoded token by operator, between them, and outside of the session.

    The library's own loop at one thread. Raises ValueError for too few tokens, RuntimeError when
    no profile was written.
    """
    if decode_tokens <= WARM_TOKENS:
        raise ValueError(f"{decode_tokens} tokens to profile: use more than {WARM_TOKENS}")
    import onnxruntime_genai as og

    with tempfile.TemporaryDirectory() as temporary:
        config = session_config(folder, 1, allow_spinning=False)
        options = {"enable_profiling": f"{temporary}/profile"}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        model = og.Model(config)
        params = og.GeneratorParams(model)
        total = prompt_tokens + decode_tokens + 1
        params.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.full(prompt_tokens, 3, dtype=np.int32))
        generator.generate_next_token()
        for done in range(decode_tokens):
            if done == WARM_TOKENS:
                started_s = time.perf_counter()
            generator.generate_next_token()
        token_us = (time.perf_counter() - started_s) * 1e6 / (decode_tokens - WARM_TOKENS)
        del generator, params, model, config
        gc.collect()  # the profile is written when the session goes
        written = list(Path(temporary).glob("profile*.json"))
        if len(written) != 1:
            raise RuntimeError(f"{len(written)} profiles of {folder}: does this build profile?")
        events = json.loads(written[0].read_text(encoding="utf-8"))
    return split_time(events, decode_tokens - WARM_TOKENS) | {"token_us": token_us}


def split_time(events: Sequence[Mapping[str, Any]], runs: int) -> dict[str, Any]:
    """Means over the last `runs` runs of the session, in microseconds.

    `operators` maps a type to its time and how many nodes of it run; `between_operators_us` is
    what the session spent around them. The profiler keeps whole microseconds and takes about one
    itself for each node, so that much of what lies between short operators is its own. Raises
    ValueError when there are fewer runs.
    """
    passes = [e for e in events if e.get("cat") == "Session" and e["name"] == "model_run"]
    if not 1 <= runs <= len(passes):
        raise ValueError(f"{runs} of {len(passes)} profiled runs: decode more tokens")
    passes = sorted(passes, key=lambda event: event["ts"])[-runs:]
    start_us = passes[0]["ts"]
    spent: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") != "Node" or event["ts"] < start_us:
            continue
        if event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] += event["dur"]
            count[kind] += 1
    session_us = sum(e["dur"] for e in passes) / runs
    in_operators_us = sum(spent.values()) / runs
    return {
        "runs": runs,
        "session_us": session_us,
        "in_operators_us": in_operators_us,
        "between_operators_us": session_us - in_operators_us,
        "nodes": sum(count.values()) / runs,
        "operators": {
            kind: {"us": spent[kind] / runs, "nodes": count[kind] / runs}
            for kind in sorted(spent, key=lambda kind: -spent[kind])
        },
    }
