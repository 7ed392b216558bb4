"""A run goes on, and writes its files, whatever becomes of its standard output; and other ends of it."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srd.errors import RunFailed, UserError, exit_code, explained
from srd.streams import Lasting, lasting

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    "deit/main.py", "--train_student", "--distillation=none", "--dataset=digits", "--workers=0",
    "--model=test_vit", "--set=model.image_size=160", "--set=data.images_per_class=1",
    "--set=augment.rand_augment=", "--batch-size=2", "--epochs=1", "--set=data.eval_batch_size=500",
    "--set=train.log_every=1", "--name=run",
)  # fmt: skip


def is_done(output: Path) -> bool:
    run = output / "run"
    return (run / "result.json").is_file() and "done in" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    "redirect",
    [
        "2>&1 | true; exit ${PIPESTATUS[0]}",
        *(pytest.param(to, marks=pytest.mark.slow) for to in (">&- 2>&-", ">/dev/full 2>&1")),
    ],
)
@pytest.mark.slow
def test_a_training_outlasts_its_standard_output(tmp_path: Path, redirect: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$0" "$@" {redirect}', sys.executable, *COMMAND, f"--output={tmp_path}"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert is_done(tmp_path)


def test_a_lost_terminal_ends_nothing() -> None:
    from srd.distributed.signals import StopSignals

    before = signal.getsignal(signal.SIGHUP)
    with StopSignals().listening() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize("kind", [io.StringIO, io.BytesIO])
def test_a_closed_stream_takes_what_it_is_given(kind: Callable[[], Any]) -> None:
    stream = kind()
    stream.close()
    lasting_one = Lasting(stream)
    assert lasting_one.write("hello") == 5
    lasting_one.flush()
    assert lasting_one.closed


def test_letters_that_a_terminal_lacks_are_written_out() -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Lasting(screen).write("caf\u00e9\n")
    screen.flush()
    assert screen.buffer.getvalue() == b"caf\\xe9\n"


def test_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    error = sys.stderr
    with lasting():
        print("lost")
        assert isinstance(sys.stdout, Lasting) and isinstance(sys.stderr, Lasting)
        with lasting():
            assert sys.stderr._stream is error
    assert sys.stdout is None and sys.stderr is error


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def many() -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/a")

    def memory() -> None:
        raise MemoryError

    assert (exit_code(many), exit_code(memory)) == (1, 1)
    first, second = capsys.readouterr().err.splitlines()
    assert "Too many open files" in first and "ulimit -n" in first and "/a" in first
    assert second == "failed: there is not enough memory"


@pytest.mark.slow
def test_too_few_open_files_are_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 16; exec "$0" "$@"', sys.executable, *COMMAND,
         f"--output={tmp_path}", "--workers=1"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=170,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "16 are allowed" in done.stderr


def test_whatever_somebodys_code_raises_is_the_users_input() -> None:
    with (
        pytest.raises(UserError, match=r"^the loss mine: KeyError: 'a'$"),
        explained("the loss mine"),
    ):
        raise KeyError("a")
    with pytest.raises(UserError, match=r"^x: AssertionError$"), explained("x"):
        raise AssertionError
    with pytest.raises(RunFailed, match=r"^full$"), explained("x"):
        raise RunFailed("full")


@pytest.mark.parametrize("what", ["moved", pytest.param("replaced", marks=pytest.mark.slow)])
def test_a_runs_folder_that_vanishes(
    tmp_path: Path,
    deit: Callable[..., Any],
    recipe: Path,
    narrow: None,
    strike: Callable[[Callable[[], None], int], None],
    what: str,
) -> None:
    run = tmp_path / "runs/run"

    def vanish() -> None:
        run.rename(tmp_path / "elsewhere")
        if what == "replaced":
            run.mkdir()

    strike(vanish, 8)
    flags = (f"--config={recipe}", f"--output={tmp_path / 'runs'}", "--name=run")
    outcome = deit("--train_student", *flags)
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    assert lines == [outcome.err.splitlines()[-1]]
    assert str(run) in lines[0] and "Traceback" not in outcome.err
    assert not run.exists() or not any(run.iterdir())
    (tmp_path / "elsewhere").rename(tmp_path / "runs/again")
    assert deit("--train_student", *flags[:2], "--name=again").code == 0


OWN = {"config.yaml": "mine: 1\n", "thesis.tex": "text"}


@pytest.mark.parametrize("resume", ["none", "auto"])
@pytest.mark.parametrize("names", [["config.yaml"], ["thesis.tex"], ["checkpoints", "thesis.tex"]])
def test_a_folder_that_is_no_runs(
    tmp_path: Path, deit: Callable[..., Any], recipe: Path, narrow: None,
    resume: str, names: list[str],
) -> None:  # fmt: skip
    """It is not renamed, and nothing in it is overwritten; other files may lie beside a run's."""
    run = tmp_path / "runs/run"
    run.mkdir(parents=True)
    for name in names:
        if name in OWN:
            (run / name).write_text(OWN[name])
        else:
            (run / name).mkdir()
    flags = (f"--config={recipe}", f"--output={tmp_path / 'runs'}", "--name=run", "--epochs=1")
    outcome = deit("--train_student", "--distillation=none", *flags, f"--resume={resume}")
    if resume == "auto" and names == ["thesis.tex"]:
        assert outcome.code == 0, outcome.err
        return
    assert outcome.code == 2 and "no run's folder" in outcome.err.splitlines()[-1]
    assert sorted(path.name for path in run.iterdir()) == sorted(names)
    assert all((run / name).read_text() == OWN[name] for name in names if name in OWN)
