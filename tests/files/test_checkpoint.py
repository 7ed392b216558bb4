"""Files: old or new and never half."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import safetensors.torch
import torch

from srd.errors import RunFailed
from srd.files.checkpoint import (
    is_whole,
    load_file,
    load_weights,
    newest_whole,
    save_state,
    save_weights,
    sha256,
    write_text,
    write_whole,
)
from tests.files.made import WEIGHTS, assert_same, cuts

# Writing


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    assert os.listdir(path.parent) == ["note.txt"]


def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "note.txt", "")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "error, raised",
    [
        (OSError(28, "No space left on device"), RunFailed),
        (RuntimeError("PytorchStreamWriter failed"), RunFailed),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=repr,
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    path = tmp_path / "last.pth"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of the n")
        file.flush()
        raise error

    with pytest.raises(raised) as caught:
        write_whole(path, write)
    if raised is RunFailed:
        assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["last.pth"]


def test_the_reason_of_a_failed_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*Not a directory"):
        save_state(tmp_path / "file" / "checkpoints" / "last.pth", {})


def test_a_full_disk_is_told_as_the_system_did(tmp_path: Path) -> None:
    """torch, which writes on while it lets go of its file, tells of a place that it did not get to."""

    def write(_: BinaryIO) -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 2613696 vs 2613588")

    with pytest.raises(RunFailed, match=r"cannot write .*last\.pth \(No space left on device\)$"):
        write_whole(tmp_path / "last.pth", write)


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"

    write_whole(path, write)
    assert path.read_text() == "new"


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    path.write_text("old")
    with path.open() as reading:
        write_text(path, "new")
        assert reading.read() == "old"
    assert path.read_text() == "new"


def in_a_fork(run: Callable[[int], None]) -> tuple[int, int]:
    """The process id of a child that calls `run(pipe)`, and the pipe's other end."""
    reading, writing = os.pipe()

    def child() -> None:
        os.close(reading)
        run(writing)

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    os.close(writing)
    assert process.pid is not None
    return process.pid, reading


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_state(path, {"epoch": 1})

    def half_of_a_file(pipe: int) -> None:
        def write(file: BinaryIO) -> None:
            file.write(b"half")
            file.flush()
            os.write(pipe, b".")
            signal.pause()

        write_whole(path, write)

    pid, reading = in_a_fork(half_of_a_file)
    os.read(reading, 1)
    kill(pid)
    assert is_whole(path) and load_file(path) == {"epoch": 1}


def test_killed_again_and_again_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"

    def save_forever(pipe: int) -> None:
        for number in range(10**9):
            save_state(path, {"number": number, "x": torch.full((20_000,), number)})
            os.write(pipe, b".")

    for rounds in range(1, 9):
        path.unlink(missing_ok=True)
        pid, reading = in_a_fork(save_forever)
        saves = sum(len(os.read(reading, 1)) for _ in range(rounds))
        kill(pid)
        assert is_whole(path)
        state = load_file(path)
        assert state["number"] >= saves - 1
        assert torch.equal(state["x"], torch.full((20_000,), state["number"]))


def test_safetensors_go_and_come(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    transposed = {"a": torch.arange(6.0).view(2, 3).t().requires_grad_()}
    save_weights(path, transposed, {"epoch": "3"})
    assert_same(load_weights(path), transposed)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"epoch": "3"}
    assert os.listdir(tmp_path) == [path.name]


def test_equal_weights_have_equal_bytes_and_they_are_the_librarys(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    weights = {
        "grüße": torch.arange(6.0).view(2, 3), "half": torch.ones(3).half(), "n": torch.tensor(3),
        "brain": torch.ones(2, dtype=torch.bfloat16), "empty": torch.ones(0, 4), "is": torch.ones(2) > 0,
    }  # fmt: skip
    about = {"model": "tiny", "acc1": "71.5", "epoch": "3"}
    save_weights(path, weights, about)
    first = path.read_bytes()
    backwards = [dict(reversed(mapping.items())) for mapping in (weights, about)]
    save_weights(path, *backwards)  # type: ignore[arg-type]
    assert path.read_bytes() == first
    save_weights(path, weights, {"format": "pt"})
    assert path.read_bytes() == safetensors.torch.save(weights, {"format": "pt"})


# Whole or damaged


STATE = {"x": torch.arange(4.0), "epoch": 3}


def test_truncated_anywhere_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_state(path, STATE)
    assert is_whole(path)
    data = path.read_bytes()
    for size in cuts(data):
        path.write_bytes(data[:size])
        assert not is_whole(path), size


def test_a_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_state(path, STATE)
    data = bytearray(path.read_bytes())
    found = 0
    for position in range(len(data)):
        data[position] ^= 0xFF
        path.write_bytes(data)
        data[position] ^= 0xFF
        if not is_whole(path):
            found += 1
            continue
        state = load_file(path)
        assert torch.equal(state["x"], STATE["x"]) and state["epoch"] == 3, position
    assert found > 500


@pytest.mark.parametrize("flipped", [0x04, 0x08, 0x10])
def test_damage_never_makes_the_check_itself_fail(tmp_path: Path, flipped: int) -> None:
    path = tmp_path / "last.pth"
    save_state(path, STATE)
    data = bytearray(path.read_bytes())
    for position in range(len(data)):
        data[position] ^= flipped
        path.write_bytes(data)
        data[position] ^= flipped
        assert is_whole(path) in (True, False)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>no</html>"])
def test_foreign_files_are_not_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pth").write_bytes(content)
    assert not is_whole(tmp_path / "last.pth")
    assert not is_whole(tmp_path / "missing.pth")
    assert not is_whole(tmp_path)


def test_the_first_whole_file_is_taken(tmp_path: Path) -> None:
    missing, bad, good, other = (tmp_path / name for name in ("missing", "bad", "good", "other"))
    for path in (bad, good, other):
        save_state(path, STATE)
    bad.write_bytes(bad.read_bytes()[:-1])
    assert newest_whole([missing, bad, good, other]) == (good, [bad])
    assert newest_whole([good, bad]) == (good, [])
    assert newest_whole([bad, missing]) == (None, [bad])
    assert newest_whole([]) == (None, [])


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "model": WEIGHTS,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "position": {"epoch": 2, "best": None, "done": False, "betas": (0.9, 0.999)},
        "name": "tiny",
    }
    save_state(tmp_path / "last.pth", state)
    loaded = load_file(tmp_path / "last.pth")
    assert_same(loaded.pop("model"))
    assert torch.equal(loaded["optimizer"]["state"].pop(0)["step"], torch.tensor(3.0))
    assert loaded == {
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "position": state["position"],
        "name": "tiny",
    }


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a") == expected
