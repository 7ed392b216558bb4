"""Two runs never write the same folder, and a dead one keeps nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from srd.errors import UserError
from srd.run import lock as claims
from srd.run.lock import Claim, Turn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """`holder("lines")`: another process claims `tmp_path`, runs the lines, says `held`, and sleeps."""
    started: list[subprocess.Popen[str]] = []

    def start(lines: str = "") -> subprocess.Popen[str]:
        script = f"""
            import os, sys, time
            from pathlib import Path
            from srd.run.lock import Claim
            claim = Claim(Path({str(tmp_path)!r}))
            {lines}
            print("held", flush=True)
            time.sleep(600)
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.communicate()


def test_a_second_run_is_told_who_is_there(
    tmp_path: Path, holder: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder()
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(UserError, match=rf"is in use by process {process.pid} on .*--name"):
        Claim(tmp_path)
    process.kill()
    process.wait()
    assert Claim(tmp_path).file is not None


def test_it_waits_for_one_that_is_leaving(
    tmp_path: Path, holder: Callable[..., subprocess.Popen[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    process = holder("import threading; threading.Timer(1.5, os._exit, [0]).start()")
    assert Claim(tmp_path).file is not None
    told = capfd.readouterr().err
    assert (
        told == f"waiting for process {process.pid} on {os.uname().nodename} to leave {tmp_path}\n"
    )


def test_children_of_a_dead_run_keep_nobody_out(
    tmp_path: Path, holder: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder("os.fork() or time.sleep(600)")
    process.kill()
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 5.0)  # for the system to clear it away
    assert Claim(tmp_path).file is not None


def test_a_folder_that_cannot_be_written_is_told_by_others(tmp_path: Path) -> None:
    assert Claim(tmp_path / "nowhere").file is None


def test_a_link_or_a_pipe_in_its_place_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".lock").symlink_to(precious)
    assert Claim(tmp_path).file is None and Turn(tmp_path / ".lock").taken
    assert precious.read_text() == "mine"
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    Claim(tmp_path).release()


def test_who_leaves_takes_the_file_away(
    tmp_path: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    holder("import threading; threading.Timer(1.5, claim.release).start()")
    second = Claim(tmp_path)  # it waited at a file that is no longer there
    assert second.file is not None and second.path.read_text().startswith(f"process {os.getpid()}")
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_taken_away_between_opening_and_locking_is_not_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = claims._lock, []

    def lock_late(file: BinaryIO) -> bool:
        if not taken:  # the one before leaves now
            taken.append((tmp_path / ".lock").unlink())
        return lock(file)

    monkeypatch.setattr(claims, "_lock", lock_late)
    claim = Claim(tmp_path)
    assert claim.file is not None
    assert os.path.samestat(os.fstat(claim.file.fileno()), (tmp_path / ".lock").stat())
