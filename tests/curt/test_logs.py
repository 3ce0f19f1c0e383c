from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time

import pytest

from curt.logs import BackgroundHandler, JsonFormatter, configure_logging


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


def test_a_reader_that_stalls_holds_up_nobody_and_is_told_what_it_missed() -> None:
    read, write = os.pipe()
    handler = BackgroundHandler(write, max_lines=100)
    started_s = time.monotonic()
    for number in range(2_000):  # more than the pipe takes
        handler.handle(logging.makeLogRecord({"msg": f"line {number} " + "x" * 1_000}))
    assert time.monotonic() - started_s < 1
    text, written, dropped = b"", [], 0
    while len(written) + dropped < 2_000:  # hangs where a line is lost and not counted
        text += os.read(read, 65_536)
        lines = text.decode().split("\n")[:-1]
        written = [int(line.split()[1]) for line in lines if line.startswith("line")]
        dropped = sum(int(line.split()[0]) for line in lines if line.endswith("were dropped"))
    assert len(written) >= 100
    assert written == sorted(written)
    handler.close()
    os.close(read)


def test_a_program_ends_though_nobody_reads_its_log() -> None:
    code = (
        "import logging; from curt.logs import configure_logging; "
        "configure_logging(json=True, background=True); "
        "[logging.info('x' * 1000) for _ in range(500)]; print('done', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == b"done\n"
        assert program.wait(20) == 0


def test_what_was_logged_last_is_written_before_the_end() -> None:
    code = (
        "import logging; from curt.logs import configure_logging; "
        "configure_logging(background=True); [logging.info('line %d', n) for n in range(500)]"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1].endswith("line 499")
    assert len(ran.stderr.splitlines()) == 500


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
