"""A small server of `/v1/completions` over a real model, in the dialects of vLLM and TensorRT-LLM.

It does what their sources say of token ids, stop tokens, bias, grammar, unknown fields and tokens
a chunk, and sees when a client hangs up. Faults are switched on from outside.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

COMMON = frozenset({
    "model", "prompt", "max_tokens", "stream", "temperature", "top_k", "top_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "stop_token_ids",
    "logit_bias", "include_stop_str_in_output",
})  # fmt: skip
# TensorRT-LLM refuses what it does not know; vLLM takes and ignores it.
KNOWN_TO_TENSORRT_LLM = COMMON | {"detokenize", "response_format"}


class CompletionsServer:
    """Serves a model folder as "curt" from threads of this process."""

    def __init__(self, folder: Path, dialect: str) -> None:
        self.dialect = dialect
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.vocabulary = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.eos_ids = {self.tokenizer.eos_token_id}
        self.bodies: list[dict[str, Any]] = []
        self.traceparents: list[str | None] = []
        self.events = self.aborted = 0
        self.status: int | None = None  # answer this instead
        self.die_after_tokens: int | None = None  # once, in the middle of a stream
        self.pause_s = 0.0  # before each token
        self.prompt_s = 0.0  # before the first
        self.health_pause_s = 0.0
        self.port = 0
        self.connections: set[socket.socket] = set()
        self._computing = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def context_tokens(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def start(self) -> CompletionsServer:
        """Listen, on the same port as before if there was one."""
        owner = self

        class Handler(_Handler):
            server_state = owner

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128  # the default of 5 resets some of a burst on a busy machine

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and drop every connection, as a killed server does."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        for connection in list(self.connections):
            _reset(connection)

    def forward(self, ids: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        with self._computing, torch.no_grad():
            out = self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            return out.logits[0, -1], out.past_key_values

    def matcher(self, body: dict[str, Any]) -> Any:
        """The grammar a body asks for, in this dialect's words; None where it asks for none."""
        if self.dialect == "vllm":
            pattern = (body.get("structured_outputs") or {}).get("regex")
        else:
            pattern = (body.get("response_format") or {}).get("regex")
        if pattern is None:
            return None
        import llguidance

        width = self.model.config.vocab_size
        tokenizer = llguidance.LLTokenizer(
            self.vocabulary, n_vocab=width, eos_token=min(self.eos_ids)
        )
        return llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_regex(pattern))


class _Handler(BaseHTTPRequestHandler):
    server_state: CompletionsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing: prompts are cases."""

    def setup(self) -> None:
        super().setup()
        self.server_state.connections.add(self.connection)

    def finish(self) -> None:
        self.server_state.connections.discard(self.connection)
        try:
            super().finish()
        except OSError:
            self.close_connection = True  # the client, or stop(), was faster

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        state = self.server_state
        if self.path == "/health":
            time.sleep(state.health_pause_s)
            self._reply(200, None)
        elif self.path == "/v1/models":
            card: dict[str, Any] = {"id": "curt", "object": "model"}
            if state.dialect == "vllm":
                card["max_model_len"] = state.context_tokens
            self._reply(200, {"object": "list", "data": [card]})
        else:
            self._reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.bodies.append(body)
        state.traceparents.append(self.headers["traceparent"])
        if state.status is not None:
            self._reply(state.status, {"error": {"message": f"no: {body['prompt']}"}})
            return
        unknown = body.keys() - KNOWN_TO_TENSORRT_LLM
        if state.dialect == "tensorrt-llm" and unknown:
            self._reply(400, {"message": f"Extra inputs are not permitted: {unknown}: {body}"})
            return
        if len(body["prompt"]) + body["max_tokens"] > state.context_tokens:
            self._reply(400, {"message": "longer than the context"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            if self._generate(body):
                self._chunk(b"data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client hung up while a token was written to it
            state.aborted += 1
            raise

    def _generate(self, body: dict[str, Any]) -> bool:
        """Stream a completion; False when it did not come to its end."""
        state, written, cache = self.server_state, 0, None
        held: list[int] = []  # tokens not told yet; the first and the last are told at once
        stops = state.eos_ids | set(body.get("stop_token_ids") or [])
        bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
        matcher, ids = state.matcher(body), list(body["prompt"])
        while True:
            if self._hung_up():
                state.aborted += 1
                return False
            time.sleep(state.pause_s if written else state.pause_s + state.prompt_s)
            logits, cache = state.forward(ids, cache)
            for token, value in bias.items():
                logits[token] += value
            if matcher is not None:
                logits = _masked(logits, matcher, state.eos_ids)
            token = int(logits.argmax())
            if matcher is not None and token not in state.eos_ids:
                matcher.consume_token(token)
            written, ids = written + 1, [token]
            if state.die_after_tokens == written:
                state.die_after_tokens = None
                _reset(self.connection)
                return False
            stopped = token in stops
            reason = "stop" if stopped else "length" if written == body["max_tokens"] else None
            held.append(token)
            if reason or written == 1 or len(held) == body.get("stream_interval", 1):
                self._tell(body, held, stopped, reason)
                held = []
            if reason:
                return True

    def _tell(
        self, body: dict[str, Any], tokens: list[int], stopped: bool, reason: str | None
    ) -> None:
        """Tokens, as each dialect tells them: text, or ids, or both, with or without the stop."""
        state = self.server_state
        kept = tokens[:-1] if stopped else tokens
        text = state.tokenizer.decode(kept)
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "token_ids": None}
        if state.dialect == "vllm":
            choice |= {"text": text}
            if body.get("return_token_ids"):
                choice["token_ids"] = tokens
        else:
            choice |= {"text": "", "token_ids": kept}
            if body.get("detokenize", True):
                choice |= {"text": text, "token_ids": None}
        data = json.dumps({"object": "text_completion", "choices": [choice]})
        state.events += 1
        self._chunk(f"data: {data}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _hung_up(self) -> bool:
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        return not self.connection.recv(1, socket.MSG_PEEK)

    def _reply(self, status: int, body: dict[str, Any] | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _masked(logits: torch.Tensor, matcher: Any, eos_ids: set[int]) -> torch.Tensor:
    import numpy as np

    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    allowed = torch.tensor(np.unpackbits(bits, bitorder="little")[: len(logits)]).bool()
    allowed[list(eos_ids)] = matcher.is_accepting()
    return logits.masked_fill(~allowed, -torch.inf)


def _reset(connection: socket.socket) -> None:
    """Drop a connection without a word."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already
