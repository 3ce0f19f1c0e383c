"""Recent answers of this server, for the feedback on them.

At most `max_answers` are known, for `ttl_s` seconds; they outlive a restart. A thread of its own
writes the files, so that remembering an answer costs the event loop some microseconds.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from pydantic import TypeAdapter, ValidationError

from curt.law.verdict import Verdict
from serve.answering.answering import DEFAULT_VARIANT
from serve.feedback.facts import FactFile
from serve.feedback.log import append_line, mend, read_lines
from serve.served import Identity, Served

logger = logging.getLogger(__name__)

MAX_PENDING = 4096  # rows that wait for the disk; those beyond it are in RAM only
SWEEPS_A_RETENTION = 20
LONGEST_SWEEP_S = 600.0


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer without its facts.

    `owner` is the id of the API key that asked, None without keys; `at_s` is Unix time;
    `degraded` says why the model gave no full verdict, and `verdict` is what the client read, the
    classifier's included.
    """

    answer_id: str
    request_id: str
    owner: str | None
    at_s: float
    model: str
    manifest: str
    variant: str
    prompt_version: str
    verdict: Verdict | None
    source: str
    degraded: str | None
    stated_budget: int
    thinking_tokens: int


ROW = TypeAdapter(Answered)
"""How an answer is written and read."""


class AnswerStore:
    """A bounded store of recent answers in `folder`, which belongs to one server."""

    def __init__(
        self,
        folder: Path,
        *,
        max_answers: int = 10_000,
        ttl_s: float = 7 * 86_400.0,
        facts: FactFile | None = None,
        keep_facts: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Expired rows of `facts` are deleted in any case; new ones are added with `keep_facts`."""
        if keep_facts and facts is None:
            raise ValueError("keep_facts needs a file of facts")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path, self._older = folder / "answers.jsonl", folder / "answers-older.jsonl"
        self._max_answers, self._ttl_s = max_answers, ttl_s
        self._facts, self._keep_facts, self._clock = facts, keep_facts, clock
        self._known: LRUCache[tuple[str | None, str], bytes] = LRUCache(max_answers)
        self._lock = threading.Lock()
        self._rows_in_file = 0
        self._pending: queue.Queue[tuple[bytes, dict[str, Any] | None] | None] = queue.Queue(
            MAX_PENDING
        )
        self._load()
        self._sweep()
        self._thread = threading.Thread(target=self._write_pending, name="answers", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        with self._lock:
            return len(self._known)

    def remember(
        self,
        request_id: str,
        served: Served,
        *,
        fact: str,
        identity: Identity,
        owner: str | None = None,
        variant: str = DEFAULT_VARIANT,
    ) -> Answered:
        """Note an answer that is about to be sent; a later one of the same id takes its place."""
        completion = served.completion
        answered = Answered(
            answer_id=uuid.uuid4().hex,
            request_id=request_id,
            owner=owner,
            at_s=round(self._clock(), 3),
            model=identity.model.name,
            manifest=identity.model.manifest,
            variant=variant,
            prompt_version=identity.manifest.prompt_version,
            verdict=served.verdict,
            source=served.source,
            degraded=served.degraded_reason,
            stated_budget=served.stated_budget,
            thinking_tokens=served.generation.thinking_tokens,
        )
        line = ROW.dump_json(answered)
        with self._lock:
            self._known[owner, request_id] = line
        kept = None
        if self._keep_facts:
            kept = {
                "answer_id": answered.answer_id,
                "request_id": request_id,
                "owner": owner,
                "at_s": answered.at_s,
                "fact": fact,
                "thinking": completion.thinking if completion.thinking_closed else None,
            }
        try:
            self._pending.put_nowait((line, kept))
        except queue.Full:
            logger.warning("an answer is in RAM only: the disk is too slow")
        return answered

    def find(self, owner: str | None, request_id: str) -> Answered | None:
        """The latest answer of that id to that owner, while it is known."""
        with self._lock:
            line = self._known.get((owner, request_id))
        if line is None:
            return None
        answered = ROW.validate_json(line)
        return answered if answered.at_s > self._clock() - self._ttl_s else None

    def flush(self) -> None:
        """Wait until everything remembered so far is in the files."""
        self._pending.join()

    def close(self) -> None:
        """Write what is pending and end the thread."""
        self._pending.put(None)
        self._thread.join()

    def _load(self) -> None:
        for path in (self._older, self._path):
            if not path.exists():
                continue
            mend(path)
            unreadable = 0
            for line in read_lines(path):
                self._rows_in_file += path == self._path
                try:
                    answered = ROW.validate_json(line)
                except ValidationError:
                    unreadable += 1
                    continue
                self._known[answered.owner, answered.request_id] = line
            if unreadable:
                logger.warning("%s: %d rows can't be read", path.name, unreadable)

    def _write_pending(self) -> None:
        interval_s = LONGEST_SWEEP_S
        if self._facts:
            interval_s = min(interval_s, self._facts.retention_s / SWEEPS_A_RETENTION)
        next_sweep_s = time.monotonic() + interval_s
        while True:
            try:
                item = self._pending.get(timeout=max(0.0, next_sweep_s - time.monotonic()))
            except queue.Empty:
                item = (b"", None)
            else:
                self._write(item)
                self._pending.task_done()
            if item is None:
                return
            if time.monotonic() >= next_sweep_s:
                self._sweep()
                next_sweep_s = time.monotonic() + interval_s

    def _write(self, item: tuple[bytes, dict[str, Any] | None] | None) -> None:
        if item is None:
            return
        line, fact = item
        try:
            if self._rows_in_file >= self._max_answers:
                os.replace(self._path, self._older)
                self._rows_in_file = 0
            append_line(self._path, line)
            self._rows_in_file += 1
            if fact is not None and self._facts:
                self._facts.append(fact)
        except OSError as error:  # a full disk must not end the thread, which also deletes
            logger.error("an answer is not in its file: %s", error.strerror)

    def _sweep(self) -> None:
        if not self._facts:
            return
        try:
            deleted = self._facts.sweep(self._clock())
        except OSError as error:
            logger.error("facts past their retention are not deleted: %s", error.strerror)
            return
        if deleted:
            logger.info("deleted %d facts past their retention", deleted)
