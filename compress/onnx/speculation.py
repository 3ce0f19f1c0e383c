"""What an export adds so that an engine can check many guessed tokens in one pass.

Two things. `add_likeliest` gives the graph an output with the likeliest token after each of the
last tokens fed. `add_guesses` gives the folder `guesses.json`, a table of what its model is used
to writing:

    python -m compress.onnx.speculation --artifact artifacts/demo/ort-w8a8 \
        --out artifacts/demo/ort-w8a8

The engine completes training cases, and what came after what in its own completions becomes the
table: tokens that the engine feeds along and keeps where the model agrees
(`curt.engines.onnx.speculation`). The graph and its weights stay as they are, and so do texts (in
w8a8 but for close choices: activations of one pass share a scale). A folder may be its own `out`;
the older one stays until the new one is whole.

The times of some tell what a pass takes and each guess fed along in it, for the manifest's
evaluation (`curt.engines.onnx.cost`): keep the machine quiet meanwhile.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import onnx
from onnx import TensorProto, helper
from pydantic import Field
from scipy.optimize import nnls

from compress.onnx.recipes import RECIPES
from curt.artifact import load_manifest, write_artifact
from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.dialogue import BUDGET_LEVELS, THINK_END
from curt.engines.onnx.cost import PassCost, ReasoningCost
from curt.engines.onnx.engine import OrtEngine
from curt.engines.onnx.graph import LIKELIEST, LIKELIEST_START, LIKELIEST_WINDOW
from curt.engines.onnx.speculation import GUESSES, LEAST_CHANCE, LONGEST_HABIT_KEY, Key
from curt.engines.protocol import Generation, Request
from curt.files import write_atomic

log = logging.getLogger(__name__)

LEAST_SEEN = 8  # a phrase of fewer completions is chance, or someone's own
LAST_INDEX = 2**31 - 1  # the end of a slice that reaches to the end

Served = tuple[Generation, list[int]]


class GuessesConfig(Config):
    """Settings of `python -m compress.onnx.speculation`."""

    artifact: Path
    """The ONNX Runtime model folder; its graph must tell the likeliest tokens."""
    out: Path
    """The model folder to write; may be `artifact`."""
    cases: Path = Path("artifacts/demo/corpus/train.jsonl")
    """JSON Lines file of cases; keep it apart from those that anything is measured on."""
    count: int = 900
    """How many of its cases to complete."""
    timed: int = Field(60, ge=0)
    """How many of these to complete twice more, for what a pass takes: the shortest time of each
    counts. 0 leaves that untold."""
    threads: int = Field(1, ge=1)
    """That complete them: as many as the worker that will serve the folder has."""
    least_chance: float | None = Field(None, gt=0, le=1)
    """How likely right all guesses of a pass must be; left out, what pays at the folder's
    precision."""


def add_likeliest(graph_file: Path) -> None:
    """Add the output of likeliest tokens to a graph file, in place.

    An export gives the logits of the last position alone, so an engine can't check several
    guessed tokens in one pass. With this output it can: the output layer runs over the last 16
    tokens of a pass, the logits stay as they were, and only token ids come out beside them. A pass
    over one token does little more than before: an argmax, 4% on the demo model. How many of the
    last tokens is an optional input, so that a prefill, which needs only the last one's, is spared
    the others. Weights, in a file beside the graph, are not touched.

    Raises ValueError where the graph has the output already, or is not one of an export that keeps
    the last position's logits in 32 bits.
    """
    proto = onnx.load(graph_file, load_external_data=False)
    graph = proto.graph
    if any(output.name == LIKELIEST for output in graph.output):
        raise ValueError(f"{graph_file} tells the likeliest tokens already: use it as it is")
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    logits = next((output for output in graph.output if output.name == "logits"), None)
    if logits is None or logits.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ValueError(f"{graph_file} has no 32-bit logits: export it for the CPU")

    last = next((node for node in graph.node if node.name == "/lm_head/prune/Gather"), None)
    unsqueeze = readers.get(last.output[0]) if last else None
    if last is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
        raise ValueError(f"{graph_file} does not keep the last position alone: export it again")
    head = readers[unsqueeze.output[0]]
    place = list(graph.node).index(last)
    bounds = {
        LIKELIEST_START: -LIKELIEST_WINDOW,
        "picks/last": -1,
        "picks/end": LAST_INDEX,
        "picks/axis": 1,
    }
    for name, value in bounds.items():
        bound = helper.make_tensor(name, TensorProto.INT64, [1], [value])
        graph.initializer.append(bound)
    # an input with a default: readers that do not know it leave it out
    graph.input.append(helper.make_tensor_value_info(LIKELIEST_START, TensorProto.INT64, [1]))
    some = helper.make_node(
        "Slice",
        [last.input[0], LIKELIEST_START, "picks/end", "picks/axis"],
        ["picks/hidden"],
        name="/picks/Slice",
    )
    head.input[list(head.input).index(unsqueeze.output[0])] = "picks/hidden"
    maker = makers["logits"]
    maker.output[list(maker.output).index("logits")] = "picks/logits"
    graph.node.remove(last)
    graph.node.remove(unsqueeze)
    graph.node.insert(place, some)
    graph.node.append(
        helper.make_node(
            "Slice",
            ["picks/logits", "picks/last", "picks/end", "picks/axis"],
            ["logits"],
            name="/picks/Last",
        )
    )
    graph.node.append(
        helper.make_node(
            "ArgMax", ["picks/logits"], [LIKELIEST], axis=-1, keepdims=0, name="/picks/ArgMax"
        )
    )
    graph.output.append(
        helper.make_tensor_value_info(LIKELIEST, TensorProto.INT64, ["batch_size", "picks_length"])
    )
    # the recorded shapes around the output layer no longer hold
    stale = [info for info in graph.value_info if info.name.startswith("/lm_head/")]
    for info in stale:
        graph.value_info.remove(info)
    onnx.save(proto, graph_file)


def complete(engine: OrtEngine, facts: Iterable[str]) -> Iterator[Served]:
    """The engine's completions of these facts, each under one of its trained budgets, and their
    tokens, with the end of the turn where it came."""
    most = engine.manifest.max_thinking_tokens
    budgets = [level for level in BUDGET_LEVELS if 16 <= level <= most] or [most]
    for place, fact in enumerate(facts):
        (done,) = engine.generate([Request(fact, budgets[-1 - place % len(budgets)], most)])
        ids = engine.tokenizer.encode(done.text)
        yield done, ids + engine.eos_ids[:1] if done.finish == "stop" else ids


def count_habits(completions: Iterable[Sequence[int]], close: int) -> dict[Key, tuple[int, float]]:
    """Count what follows what in completions of token ids; each ends with its end of turn if any.

    Only phrases of at least `LEAST_SEEN` completions count. A key that reaches over the end of
    thinking (`close`) would tie the answer's phrases to single reasonings, so keys stop there.
    """
    follows: defaultdict[Key, Counter[int]] = defaultdict(Counter)
    seen_in: defaultdict[Key, int] = defaultdict(int)
    for completion in completions:
        keys: set[Key] = set()
        for place in range(1, len(completion)):
            for length in range(1, min(LONGEST_HABIT_KEY, place) + 1):
                key = tuple(completion[place - length : place])
                follows[key][completion[place]] += 1
                keys.add(key)
                if key[0] == close:
                    break
        for key in keys:
            seen_in[key] += 1
    learnt = {}
    for key, nexts in follows.items():
        if seen_in[key] >= LEAST_SEEN:
            token, times = nexts.most_common(1)[0]
            learnt[key] = token, round(times / (nexts.total() + 1), 3)
    return learnt


def write_habits(
    folder: Path, learnt: dict[Key, tuple[int, float]], least_chance: float = LEAST_CHANCE
) -> None:
    """Write a table into a model folder that is being made."""
    rows = [[*key, token, right] for key, (token, right) in sorted(learnt.items())]
    table = {"least_chance": least_chance, "rows": rows}
    write_atomic(folder / GUESSES, json.dumps(table, separators=(",", ":")) + "\n")


def fit_cost(runs: Sequence[tuple[int, int, float]]) -> PassCost:
    """What passes and guesses take, by least squares over (passes, guesses, milliseconds).

    Of relative errors: long completions must not decide alone.
    """
    rows = [[passes / ms, guesses / ms] for passes, guesses, ms in runs]
    # The last row: where the two always go together, passes take the time.
    (pass_ms, guess_ms), _ = nnls([*rows, [0.0, 1e-3]], [*[1.0] * len(rows), 0.0])
    cost = PassCost(pass_ms=pass_ms, guess_ms=guess_ms)
    error = fmean(abs(cost.total_ms(passes, guesses) / ms - 1) for passes, guesses, ms in runs)
    return cost.model_copy(update={"cost_error": error})


def price(served: Sequence[Served], before: Path, after: Path, limit: int) -> dict[str, float]:
    """What reasoning costs a folder `after` it learnt, by completions that it served `before`.

    Nothing, with a warning, where too few can be replayed pass by pass: the tokenizer may read a
    text as other tokens than were written.
    """
    replay = ReasoningCost(before, PassCost()).replay
    runs = [
        (passes, guesses, done.decode_ms)
        for done, (passes, guesses) in ((done, replay(ids, limit)) for done, ids in served)
        if passes and passes == done.decode_passes
    ]
    if len(runs) < LEAST_SEEN:
        log.warning(
            "%d of %d completions can be timed: the cost stays untold", len(runs), len(served)
        )
        return {}
    cost = fit_cost(runs)
    measure = ReasoningCost(after, cost).measure  # token_ms is 1, so lengths are milliseconds
    ms = sum(measure(ids, limit).length for _, ids in served)
    tokens = sum(done.thinking_tokens for done, _ in served)
    return cost.model_copy(update={"token_ms": ms / tokens if ms else 1.0}).model_dump()


def add_guesses(config: GuessesConfig) -> None:
    """Write a copy of an artifact that has a table.

    A table of nothing, with a warning, where there are too few cases to learn from. Raises
    ArtifactError when the artifact must not be loaded, ValueError where its graph does not tell
    the likeliest tokens.
    """
    manifest = load_manifest(config.artifact, expect="ort-genai")
    engine = OrtEngine(config.artifact, threads=config.threads)
    if not engine.can_guess:
        raise ValueError(
            f"{config.artifact} does not tell the likeliest tokens: export it again without "
            "--tell_likeliest false"
        )
    facts = [case.fact for case in list(read_cases(config.cases))[: config.count]]
    (close,) = engine.tokenizer.encode(THINK_END)
    served = list(complete(engine, facts))
    learnt = count_habits((ids for _, ids in served), close)
    rounds = [served[: config.timed], *(complete(engine, facts[: config.timed]) for _ in range(2))]
    timed = [min(each, key=lambda one: one[0].decode_ms) for each in zip(*rounds, strict=True)]
    recipe = RECIPES.get(manifest.precision)
    own = recipe.least_chance if recipe else None
    least_chance = config.least_chance or own or LEAST_CHANCE
    if not learnt:
        log.warning("no phrase comes up often enough in %d completions: use more cases", len(facts))
    describe = manifest.model_dump(exclude={"tools", "created", "files"})
    for name in PassCost.model_fields:
        describe["evaluation"].pop(name, None)  # of other guesses
    with write_artifact(config.out, describe) as folder:
        for name in manifest.files:
            if name != GUESSES:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(config.artifact / name, target)
        write_habits(folder, learnt, least_chance)
        cost = price(timed, config.artifact, folder, manifest.max_thinking_tokens)
        describe["evaluation"].update(cost)
    log.info("%s guesses from %d phrases of %d cases", config.out, len(learnt), len(facts))
    log.info("a pass costs %s", json.dumps(cost))


if __name__ == "__main__":
    run(GuessesConfig, add_guesses)
