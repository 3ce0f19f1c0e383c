from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curt.stopwatch import main, record

ROOT = Path(__file__).parents[2]


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_success_is_recorded_beside_earlier_stages(tmp_path):
    file = tmp_path / "run" / "timing.json"
    record(file, "corpus", 12.34, 99.6)
    code = "import time; held = bytes(range(256)) * 1_000_000; time.sleep(0.2)"
    assert main([str(file), "train", "--", *command(code)]) == 0
    timings = json.loads(file.read_text())
    assert timings["corpus"] == {"seconds": 12.3, "peak_mib": 100}
    assert 0.2 <= timings["train"]["seconds"] < 10
    assert timings["train"]["peak_mib"] > 244  # 256 MB are held


def test_a_stage_done_again_replaces_its_time(tmp_path):
    file = tmp_path / "timing.json"
    record(file, "train", 500.0, 1.0)
    main([str(file), "train", "--", *command("")])
    assert json.loads(file.read_text())["train"]["seconds"] < 100


def test_a_failure_is_not_recorded_and_its_code_is_passed_on(tmp_path):
    file = tmp_path / "timing.json"
    assert main([str(file), "train", "--", *command("import sys; sys.exit(7)")]) == 7
    assert not file.exists()


def test_a_killed_command_is_reported_as_a_shell_does(tmp_path):
    file = tmp_path / "timing.json"
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert main([str(file), "train", "--", *command(code)]) == 128 + 9
    assert not file.exists()


def test_dashes_of_the_command_are_left_alone(tmp_path):
    code = "import sys; sys.exit(sys.argv[1:] != ['--', '-x'])"
    assert main([str(tmp_path / "t.json"), "s", "--", *command(code), "--", "-x"]) == 0


@pytest.mark.parametrize("arguments", [[], ["f.json", "stage"], ["f.json", "stage", "python", "x"]])
def test_misuse_shows_the_usage(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert "usage" in str(exit_.value.code)


def test_ctrl_c_waits_for_a_command_that_saves_its_work(tmp_path):
    """A terminal sends Ctrl-C to both; the command may take its time to end in order."""
    saved = tmp_path / "saved"
    code = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(1.5)\n"
        f"    pathlib.Path({str(saved)!r}).write_text('all')\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    timing = tmp_path / "timing.json"
    watch = subprocess.Popen(
        [sys.executable, "-m", "curt.stopwatch", str(timing), "train", "--", *command(code)],
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(watch.pid, signal.SIGINT)
        assert watch.wait(timeout=30) == 3
    finally:
        if watch.poll() is None:
            os.killpg(watch.pid, signal.SIGKILL)
    assert saved.read_text() == "all"
    assert not timing.exists()
