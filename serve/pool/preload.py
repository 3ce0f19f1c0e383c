"""Imported once, in the process that all workers are forked from (multiprocessing's forkserver).

A worker that imports all of this itself takes a second of a busy core before it loads its model;
a fork takes a fifth of that. The forkserver runs nothing else: it has one thread, never holds a
model or a request, and ends with the front.
"""

from __future__ import annotations

import importlib.util
import os
import signal

# Set before the imports below read them: a process that forks must not have threads.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
# A SIGTERM to the whole process group would end this process, and all workers would look dead to
# the front while it drains. It ends when the front does.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

import serve.pool.worker  # noqa: E402, F401

# What the engine imports only once it opens a folder.
for name in ("onnxruntime", "tokenizers", "transformers.utils.chat_template_utils"):
    if importlib.util.find_spec(name.partition(".")[0]):
        importlib.import_module(name)
