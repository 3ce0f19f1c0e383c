"""The servable model of the server's tests."""

from tests.serve.conftest import ort_model

__all__ = ["ort_model"]
