"""Fixtures shared by every package's tests."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: two processes share the rest better than one long file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C interrupt this process and those it starts.

    A background job (`nohup make test &`) ignores the signal, and its children inherit that.
    """
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights (see tests/micro.py)."""
    from tests.micro import make_micro_model

    return make_micro_model(tmp_path_factory.mktemp("micro") / "model")


@pytest.fixture(scope="session")
def real_cases() -> Path:
    """Folder of real CAIL2018 files beside the checkout, where a developer has one."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "cail"
    if not folder.is_dir():
        pytest.skip("no real CAIL2018 files beside this checkout")
    return folder


@pytest.fixture(scope="session")
def invented() -> Path:
    """Folder of invented awkward inputs beside the checkout, where a developer has one."""
    folder = Path(__file__).parents[2] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("no invented inputs beside this checkout")
    return folder


@pytest.fixture(scope="session")
def real_judgments() -> list[dict[str, Any]]:
    """Whole real judgments beside the checkout, where a developer has them."""
    path = Path(__file__).parents[2] / "shared" / "data" / "judgments.jsonl"
    if not path.is_file():
        pytest.skip("no real judgments beside this checkout")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
