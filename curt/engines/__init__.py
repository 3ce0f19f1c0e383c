"""Engines run a prompt through a model within a thinking budget and, if given, a deadline."""

from curt.engines.protocol import Engine, Generation, Request, Step, StreamingEngine

__all__ = ["Engine", "Generation", "Request", "Step", "StreamingEngine"]
