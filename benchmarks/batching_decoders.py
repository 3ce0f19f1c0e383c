"""One model decoding one or more requests at once, in four ways with one face.

- `single`: Curt's own engine, one request at a time.
- `padded`: one batched generator of onnxruntime-genai, prompts padded on the left.
- `engine`: the library's `Engine`, which batches statically.
- `rows`: plain onnxruntime, rows of any length that come and go (`benchmarks.batching_rows`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import onnxruntime_genai as og

from benchmarks.batching_rows import RowsDecoder
from benchmarks.batching_turn import Limits, Turn, pad_left
from curt.artifact import load_manifest
from curt.dialogue import THINK_END, clip_fact, normalise_fact, render_prompt
from curt.engines.onnxruntime_genai import GENAI_CONFIG, session_config
from curt.engines.prompt_tokenizer import PromptTokenizer

Kind = Literal["single", "padded", "engine", "rows"]


class Decoder(Protocol):
    """Takes requests while it has room and completes them step by step."""

    @property
    def room(self) -> int:
        """How many more requests it can take now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        ...

    def admit(self, turns: list[Turn]) -> None:
        """Begin some requests, no more than there is room for."""
        ...

    def step(self) -> list[Turn]:
        """Go on a little; the requests that are over."""
        ...


class Prompts:
    """Facts into token ids and tokens into text, as the engine does it."""

    def __init__(self, folder: Path, thinking: int, answer: int) -> None:
        """Read a model folder's tokenizer and limits; `thinking` and `answer` in tokens."""
        self.manifest = load_manifest(folder, expect="ort-genai")
        self._tokenizer = PromptTokenizer(folder)
        model = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))["model"]
        eos = model["eos_token_id"]
        self.pad: int = model["pad_token_id"]
        (close,) = self._tokenizer.encode(THINK_END)
        self.limits = Limits(
            thinking, answer, close, tuple(eos) if isinstance(eos, list) else (eos,)
        )
        probes = self._encode("甲"), self._encode("2")
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(*probes, strict=False))
        self.prefix = [token for token, _ in alike]
        slack = 16  # clip_fact adds an ellipsis and may split characters at its seams
        longest = len(self._encode("")) + self.manifest.max_fact_tokens + slack
        self.capacity_tokens = min(model["context_length"], longest + thinking + 1 + answer)

    def turn(self, job: int, fact: str) -> Turn:
        """A request about a raw fact."""
        tokenizer = cast("Any", self._tokenizer)
        clipped = clip_fact(normalise_fact(fact), tokenizer, self.manifest.max_fact_tokens)
        return Turn(job, self._encode(clipped), self.limits)

    def text(self, turn: Turn) -> str:
        """The completion of a request."""
        thinking = self._tokenizer.decode(turn.thinking)
        return thinking + (THINK_END + self._tokenizer.decode(turn.answer) if turn.closed else "")

    def _encode(self, fact: str) -> list[int]:
        prompt = render_prompt(cast("Any", self._tokenizer), fact, self.limits.thinking)
        return self._tokenizer.encode(prompt)


class SingleDecoder:
    """The loop of Curt's own engine: static prefix kept, one request at a time."""

    def __init__(
        self, folder: Path, tokens: int, prefix: list[int], threads: int, spin: bool
    ) -> None:
        model = og.Model(session_config(folder, threads, spin))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=tokens, do_sample=False)
        self._generator = og.Generator(model, params)
        self._prefix = prefix
        self._append(prefix)
        self._turn: Turn | None = None

    @property
    def room(self) -> int:
        """One, or none."""
        return int(self._turn is None)

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._turn is not None

    def admit(self, turns: list[Turn]) -> None:
        """Prefill a request."""
        (self._turn,) = turns
        held = len(self._prefix)
        assert self._turn.prompt[:held] == self._prefix, "every prompt begins alike"
        self._generator.rewind_to(held)
        self._append(self._turn.prompt[held:])

    def step(self) -> list[Turn]:
        """One token."""
        assert self._turn
        token = self._turn.take(np.array(self._generator.get_logits()[0, -1]))
        if token is not None:
            self._append([token])
            return []
        over, self._turn = self._turn, None
        return [over]

    def _append(self, ids: list[int]) -> None:
        self._generator.append_tokens(np.asarray(ids, np.int32))


class PaddedDecoder:
    """Up to `batch` requests in one generator; the next ones wait until all of them are over.

    A batched generator takes no tokens after its prompts: a forced token goes in through logits
    that allow nothing else.
    """

    def __init__(
        self, folder: Path, batch: int, tokens: int, pad: int, threads: int, spin: bool
    ) -> None:
        self._model = og.Model(session_config(folder, threads, spin))
        self._batch, self._tokens, self._pad = batch, tokens, pad
        self._turns: list[Turn] = []
        self._generator: Any = None

    @property
    def room(self) -> int:
        """A whole batch, or none."""
        return 0 if self._turns else self._batch

    @property
    def busy(self) -> bool:
        """Whether a batch is under way."""
        return bool(self._turns)

    def admit(self, turns: list[Turn]) -> None:
        """Prefill a batch."""
        self._turns = turns
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            max_length=self._tokens, do_sample=False, batch_size=len(turns), early_stopping=False
        )
        self._generator = og.Generator(self._model, params)
        ids = pad_left([turn.prompt for turn in turns], self._pad)
        self._generator.append_tokens(ids if len(turns) > 1 else ids[0])

    def step(self) -> list[Turn]:
        """One token for every row, those that are over included."""
        logits = np.array(self._generator.get_logits())[:, -1]
        forced = np.full((len(self._turns), 1, logits.shape[-1]), -1e9, np.float32)
        over = []
        for row, turn in enumerate(self._turns):
            token = None
            if not turn.over:
                token = turn.take(logits[row])
                if token is None:
                    over.append(turn)
            forced[row, 0, turn.limits.close if token is None else token] = 0.0
        if all(turn.over for turn in self._turns):
            self._turns, self._generator = [], None
        else:
            self._generator.set_logits(forced)
            self._generator.generate_next_token()
        return over


class EngineDecoder:
    """The library's Engine, up to `batch` requests at once.

    It lets nobody force a token within a turn: here the model ends its thinking itself, and only
    the sum of both limits is enforced.
    """

    def __init__(self, folder: Path, batch: int, tokens: int, threads: int, spin: bool) -> None:
        config = session_config(folder, threads, spin)
        config.overlay(json.dumps({"engine": {"static_batching": {"max_batch_size": batch}}}))
        self._engine = og.Engine(og.Model(config))
        self._events = self._engine.create_event_buffer(8 * batch)
        self._batch, self._tokens = batch, tokens
        self._open: list[tuple[Any, Turn, list[int]]] = []

    @property
    def room(self) -> int:
        """A whole batch, or none: one that comes late would wait here instead of in the queue."""
        return 0 if self._open else self._batch

    @property
    def busy(self) -> bool:
        """Whether a batch is under way."""
        return bool(self._open)

    def admit(self, turns: list[Turn]) -> None:
        """Hand a batch to the library."""
        for turn in turns:
            options = og.RequestOptions()
            options.set_max_session_tokens(self._tokens)
            request = self._engine.create_request(options=options)
            rules = og.TurnOptions(request)
            rules.set_do_sample(False)
            rules.set_max_generated_tokens(turn.limits.thinking + 1 + turn.limits.answer)
            request.begin_turn(np.asarray(turn.prompt, np.int32), rules)
            self._open.append((request, turn, []))

    def step(self) -> list[Turn]:
        """Whatever the library does in one call."""
        over = []
        for event in self._engine.run(self._events):
            place = next(i for i, each in enumerate(self._open) if each[0] is event.request)
            request, turn, tokens = self._open[place]
            flags = int(event.flags)
            if flags & int(og.EngineEventFlags.FAILED):
                raise RuntimeError(f"the library's Engine failed: error {event.error_code}")
            if flags & int(og.EngineEventFlags.TOKEN):
                tokens.append(int(event.token))
            if flags & int(og.EngineEventFlags.TURN_FINISHED):
                _split(turn, tokens)
                over.append(turn)
                request.close()
                del self._open[place]
        return over


def open_decoder(
    kind: Kind,
    folder: Path,
    prompts: Prompts,
    *,
    all_logits: Path,
    batch: int,
    threads: int,
    spin: bool,
) -> Decoder:
    """Load a model folder for decoding in one of the four ways; see `with_all_logits`."""
    tokens = prompts.capacity_tokens
    if kind == "single":
        return SingleDecoder(folder, tokens, prompts.prefix, threads, spin)
    if kind == "padded":
        return PaddedDecoder(folder, batch, tokens, prompts.pad, threads, spin)
    if kind == "engine":
        return EngineDecoder(all_logits, batch, tokens, threads, spin)
    return RowsDecoder(folder, batch, tokens, prompts.prefix, threads, spin)


def with_all_logits(folder: Path, out: Path) -> None:
    """Write the model with logits of every position, which the library's Engine asks for.

    Exports compute the last position's alone. Raises ValueError when the graph does
    not pick its last position where exports do.
    """
    import onnx

    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    made_by: Mapping[str, Any] = {name: n for n in model.graph.node for name in n.output}
    head = made_by["logits"]
    unsqueeze: Any = made_by.get(head.input[0])
    gather: Any = made_by.get(unsqueeze.input[0]) if unsqueeze is not None else None
    if gather is None or (unsqueeze.op_type, gather.op_type) != ("Unsqueeze", "Gather"):
        raise ValueError(
            f"{folder} computes more than the last position: export it with --picks false"
        )
    head.input[0] = gather.input[0]
    model.graph.node.remove(unsqueeze)
    model.graph.node.remove(gather)
    logits = next(o for o in model.graph.output if o.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    out.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.name != "model.onnx":
            shutil.copy(file, out / file.name)  # a linked weights file is refused
    onnx.save(model, str(out / "model.onnx"))


def _split(turn: Turn, tokens: list[int]) -> None:
    """Fill in a turn that something else has completed."""
    end = tokens.index(turn.limits.close) if turn.limits.close in tokens else len(tokens)
    written = tokens if turn.closed else tokens[end + 1 :]
    if not turn.closed:
        turn.thinking = tokens[:end]
        turn.closed = end < len(tokens)
    turn.answer = [token for token in written if token not in turn.limits.eos]
    turn.over = True
