"""What workers have in common, imported once in the process they are all forked from.

A worker that imports all of this itself takes a second of a busy core before it loads its model;
forked from here, a fifth of that. The process runs nothing else: it has one thread, never holds a
model or a request, and ends with the front.
"""

from __future__ import annotations

import importlib.util
import os
import signal

# Before the imports below read them: threads must not exist in a process that forks.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
# A SIGTERM to the whole process group would end this process and with it, for the front, all
# workers, in the middle of draining. It ends when the front does.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

import serve.pool.worker  # noqa: E402, F401

# What the engine imports only once it opens a folder.
for name in ("onnxruntime", "tokenizers", "transformers.utils.chat_template_utils"):
    if importlib.util.find_spec(name.partition(".")[0]):
        importlib.import_module(name)
