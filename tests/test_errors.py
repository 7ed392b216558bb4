"""Exceptions become the exit codes of the contract, with one message and no traceback."""

from __future__ import annotations

import pytest

from srd.errors import RunFailed, Stopped, UserError, exit_code, nearest


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("no data at /x"), 2, "error: no data at /x\n"),
        (RunFailed("the loss is nan"), 1, "failed: the loss is nan\n"),
        (Stopped("saved last.pth"), 143, "stopped: saved last.pth\n"),
        (Stopped("saved last.pth", 130), 130, "stopped: saved last.pth\n"),
    ],
)
def test_expected_errors_are_a_line_and_a_code(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise error

    assert exit_code(run) == code
    assert capsys.readouterr() == ("", said)


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise KeyboardInterrupt

    assert exit_code(run) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_ends_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: "done") == 0
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


def test_the_nearest_name_is_proposed() -> None:
    known = ["batch_size", "epochs", "seed"]
    assert nearest("bach_size", known) == " (did you mean 'batch_size'?)"
    assert nearest("epoch", iter(known)) == " (did you mean 'epochs'?)"
    known = ["optim.warmup_epochs", "optim.warmup_lr", "data.skip_broken"]
    assert nearest("optim.warmup", known) == " (did you mean 'optim.warmup_epochs'?)"  # so begun
    assert nearest("skip_broken", known) == " (did you mean 'data.skip_broken'?)"
    assert nearest("zzz", known) == nearest("x", []) == ""
