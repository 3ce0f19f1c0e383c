from __future__ import annotations

import json
import logging
import sys

import pytest

from curt.logs import JsonFormatter, configure_logging


def test_json_lines_carry_the_extra_fields() -> None:
    record = logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "msg": "got %d", "args": (2,)}
    )
    record.status = 200
    line = json.loads(JsonFormatter().format(record))
    assert (line["logger"], line["message"], line["status"]) == ("a", "got 2", 200)


def test_an_error_is_logged_without_its_message() -> None:
    try:
        raise ValueError("被告人张某")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    text = JsonFormatter().format(record)
    assert "张某" not in text
    assert json.loads(text)["error"] == "ValueError"
    assert "test_logs.py" in json.loads(text)["stack"][0]


@pytest.mark.parametrize("as_json", [True, False])
def test_configuring_logs_to_standard_error(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging(json=as_json)
        logging.getLogger("x").info("hello")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ('"message": "hello"' in captured.err) is as_json
    assert "hello" in captured.err
