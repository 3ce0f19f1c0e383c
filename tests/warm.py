"""Entry points started by forking a process that has imported the heavy libraries already.

Importing torch, transformers and TRL takes ten seconds of processor a start, and tests that kill,
stop and resume runs start dozens. One server process a test process imports them once, knows
nothing of the project, and forks: each child runs a module as `python -m` does, with arguments,
environment and log of its own, and is killed and waited for as any process is.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

_SERVER = """
import atexit, json, os, runpy, select, signal, sys, threading, traceback
import onnxruntime, sklearn.linear_model, sklearn.svm, torch, transformers
from datasets import Dataset
from onnxruntime_genai.models import builder
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, Trainer
from trl import GRPOTrainer

def become(order):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["env"])
    sys.argv = [order["module"], *order["arguments"]]
    code = 0
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

def tell(**row):
    os.write(1, (json.dumps(row) + "\\n").encode())

tell(ready=True)
children = set()
while True:
    readable, _, _ = select.select([0], [], [], 0.02 if children else None)
    if readable:
        line = sys.stdin.readline()
        if not line:
            break
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
        children.add(pid)
        tell(started=pid)
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.discard(pid)
            tell(ended=pid, code=os.waitstatus_to_exitcode(status))
"""


class WarmServer:
    """The process that forks, and what it said of its children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-W", "ignore", "-c", _SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self._unread = b""
        self.codes: dict[int, int] = {}
        atexit.register(self.close)
        self._read_until("ready")

    def start(
        self, module: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]
    ) -> WarmProcess:
        """Run a module as `python -m` does, in a session of its own."""
        order = {"module": module, "arguments": list(arguments), "log": str(log), "env": dict(env)}
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(order) + "\n").encode())
        self._process.stdin.flush()
        return WarmProcess(self, self._read_until("started"))

    def close(self) -> None:
        """End the server; its children are left to those who started them."""
        self._process.kill()
        self._process.communicate()

    def listen(self, timeout_s: float | None) -> dict[str, int] | None:
        """The next thing the server says, None where it says nothing in time."""
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([stream], [], [], timeout_s)[0]:
                return None
            read = os.read(stream, 65536)
            assert read, "the server that starts processes has ended"
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        row: dict[str, int] = json.loads(line)
        if "ended" in row:
            self.codes[row["ended"]] = row["code"]
        return row

    def _read_until(self, word: str) -> int:
        while True:
            row = self.listen(None)
            if row is not None and word in row:
                return row[word]


class WarmProcess:
    """What tests use of `subprocess.Popen`."""

    def __init__(self, server: WarmServer, pid: int) -> None:
        self._server, self.pid = server, pid

    @property
    def returncode(self) -> int | None:
        """As of the last look."""
        return self._server.codes.get(self.pid)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        while self.pid not in self._server.codes and self._server.listen(0) is not None:
            pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired where it runs longer."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.pid not in self._server.codes:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self._server.listen(left)
        return self._server.codes[self.pid]

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


_server: WarmServer | None = None


def start_warm(
    module: str, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> WarmProcess:
    """Start a module from the one server of this test process."""
    global _server
    if _server is None:
        _server = WarmServer()
    return _server.start(module, arguments, log, env or {})
