"""Engines run a prompt through a model within a thinking budget and, if given, a deadline.

`protocol` is what every engine keeps, `writing` the loop of thinking and answer they share, and
`registry` names them all.
"""

from curt.engines.protocol import (
    Engine,
    Generation,
    GenerationStep,
    Request,
    StreamingEngine,
)

__all__ = ["Engine", "Generation", "GenerationStep", "Request", "StreamingEngine"]
