"""Files: old or new and never half, read as data and never executed."""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from srd.checkpoint import (
    explain_mismatch,
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
from srd.errors import RunFailed, UserError

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([1.0, -1.0])}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def saved(path: Path, content: Any, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def one_line(error: pytest.ExceptionInfo[Exception], path: Path) -> str:
    said = str(error.value)
    assert str(path) in said and "\n" not in said and len(said) < 400
    return said


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


# Whole or damaged


STATE = {"x": torch.arange(4.0), "epoch": 3}


def cuts(data: bytes) -> list[int]:
    """Lengths at which to cut a file: the start and the end byte by byte, and samples between."""
    return [*range(0, 40), *range(40, len(data), 17), *range(len(data) - 40, len(data))]


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


# Weights in files met in the wild


LAYOUTS: dict[str, Any] = {
    "plain": WEIGHTS,
    "ordered": OrderedDict(WEIGHTS),
    "model": {"model": WEIGHTS, "epoch": 299, "max_accuracy": 77.2},
    "state_dict": {"state_dict": WEIGHTS, "arch": "resnet18", "epoch": 3},
    "model before state_dict": {"state_dict": {"a": torch.ones(1)}, "model": WEIGHTS},
    "module.": {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    "_orig_mod.": {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    "both": {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    "numbers besides": {**WEIGHTS, "epoch": 3},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found(tmp_path: Path, layout: str, legacy: bool) -> None:
    path = saved(tmp_path / "a.pth", LAYOUTS[layout], _use_new_zipfile_serialization=not legacy)
    assert_same(load_weights(path))


def test_a_module_in_the_middle_of_a_name_stays(tmp_path: Path) -> None:
    weights = {"stem.module.weight": torch.ones(1)}
    assert_same(load_weights(saved(tmp_path / "a.pth", weights)), weights)


def test_weights_of_a_network_and_its_parameters(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = saved(tmp_path / "a.pth", {"model": network.state_dict()})
    assert_same(load_weights(str(path)), dict(network.state_dict()))
    assert_same(load_weights(saved(path, dict(network.named_parameters()))),
                dict(network.named_parameters()))  # fmt: skip


def test_safetensors_go_and_come(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    transposed = {"a": torch.arange(6.0).view(2, 3).t().requires_grad_()}
    save_weights(path, transposed, {"epoch": "3"})
    assert_same(load_weights(path), transposed)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"epoch": "3"}
    assert os.listdir(tmp_path) == [path.name]


def released_config() -> CfgNode:
    """As in the released DeiT file: nested, frozen, with new keys allowed in places."""
    config = CfgNode({"BASE": [""], "MODEL": CfgNode({"TYPE": "deit", "DEPTHS": (2, 2)})})
    config.AUG = CfgNode(new_allowed=True)
    config.AUG.MIXUP = 0.8
    config.AMP_OPT_LEVEL = None
    config.freeze()
    return config


@pytest.mark.parametrize("legacy", [False, True])
def test_the_released_layout_is_read_without_yacs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    content = {
        "model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"t_initial": 300},
        "max_accuracy": 77.2,
        "epoch": 299,
        "config": released_config(),
    }
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=not legacy)
    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import yacs.config  # noqa: F401
    assert_same(load_weights(path))
    config = load_file(path)["config"]
    assert config == {
        "BASE": [""],
        "MODEL": {"TYPE": "deit", "DEPTHS": (2, 2)},
        "AUG": {"MIXUP": 0.8},
        "AMP_OPT_LEVEL": None,
    }
    assert type(config) is type(config["MODEL"]) is dict


def test_a_torchdistill_checkpoint_is_read(tmp_path: Path) -> None:
    weights = {f"{part}.weight": torch.ones(2) for part in ("model", "linear", "norm_layer")}
    arguments = argparse.Namespace(config="a.yaml", inner=argparse.Namespace(seed=None))
    content = {"model": weights, "best_value": 71.9, "args": arguments, "optimizer": None}
    path = saved(tmp_path / "a.pth", content)
    assert_same(load_weights(path), weights)
    assert load_file(path)["args"] == {"config": "a.yaml", "inner": {"seed": None}}


# Files that want to be run


class Hostile:
    """Pickles as a call: the classic attack."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(marker: Path) -> dict[str, Hostile]:
    create = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Hostile(os.system, f"touch {marker}"),
        "eval": Hostile(eval, create),
        "exec": Hostile(exec, create),
        "Popen": Hostile(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Hostile(getattr, "text", "upper"),
        "loads": Hostile(pickle.loads, pickle.dumps(Hostile(os.system, f"touch {marker}"))),
        "save": Hostile(torch.save, 1, str(marker)),
    }


ATTACKS = ["system", "eval", "exec", "Popen", "getattr", "loads", "save"]


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def zipped(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("writer", [pickled, zipped, legacy])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file_is_refused_and_does_nothing(
    tmp_path: Path, name: str, writer: Callable[[Any], bytes]
) -> None:
    marker, path = tmp_path / "owned", tmp_path / "a.pth"
    attack = attacks(marker)[name]
    for content in (
        attack,
        {"model": {**WEIGHTS, "x": attack}},
        {"model": WEIGHTS, "args": [attack]},
    ):
        path.write_bytes(writer(content))
        with pytest.raises(UserError) as caught:
            load_weights(path)
        said = one_line(caught, path)
        assert not marker.exists()
        if writer is not pickled:
            assert f"{name}: refused" in said


def test_the_attacks_work_on_who_unpickles(tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    pickle.loads(pickled(attacks(marker)["exec"]))
    assert marker.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": nn.Linear(1, 1)})
    with pytest.raises(UserError, match=r"Linear: refused"):
        load_weights(path)


def test_the_stand_ins_are_gone_after_loading(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": WEIGHTS, "args": argparse.Namespace(a=1)})
    load_file(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


# Files that are something else


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"<!DOCTYPE html><html><body>404</body></html>", b"version https://git-lfs\n",
     b"PK\x03\x04garbage", b"\x80\x02", b"\x80\x02}q\x00.", b"\x80\x02X\x05\x00", bytes(100)],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_foreign_file_is_an_error_of_one_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_truncated_file_is_an_error_of_one_line(
    tmp_path: Path, write: Callable[[Any], bytes]
) -> None:
    data, path = write({"model": WEIGHTS, "epoch": 3}), tmp_path / "a.pth"
    for size in cuts(data) if write is zipped else range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UserError) as caught:
            load_file(path)
        one_line(caught, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_damaged_file_is_read_or_an_error_of_one_line(
    tmp_path: Path, write: Callable[[Any], bytes]
) -> None:
    data, path = bytearray(write({"model": WEIGHTS, "epoch": 3})), tmp_path / "a.pth"
    for position in range(len(data)):
        data[position] ^= 1
        path.write_bytes(data)
        data[position] ^= 1
        try:
            load_file(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, WEIGHTS, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


@pytest.mark.parametrize("content", [[1, 2], "text", 3, WEIGHTS["head.bias"], None], ids=repr)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: Any) -> None:
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


def test_a_file_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": WEIGHTS}
    content["again"] = content
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


def test_a_file_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"epoch": 3, "history": [1, 2]})
    with pytest.raises(UserError) as caught:
        load_weights(path)
    assert "epoch, history" in one_line(caught, path)


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(UserError, match=f"no checkpoint at {path}"):
            load_weights(path)


# Weights that do not fit


def test_weights_that_fit() -> None:
    explain_mismatch(WEIGHTS, dict(reversed(WEIGHTS.items())), "a.pth", "the student")


def test_weights_that_do_not_fit_are_named() -> None:
    found = {
        "head.weight": torch.zeros(10, 3),
        "extra.a": torch.zeros(1),
        "extra.b": torch.zeros(1),
    }
    with pytest.raises(UserError) as caught:
        explain_mismatch(WEIGHTS, found, "a.pth", "the student")
    said = str(caught.value)
    assert said.startswith("a.pth does not fit the student")
    for part in (
        "1 missing: head.bias",
        "2 unexpected: extra.a, extra.b",
        "(10, 3) instead of (2, 3)",
    ):
        assert part in said
    assert said.index("missing") < said.index("unexpected")


def test_long_lists_are_cut_short() -> None:
    many = {f"layer{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(UserError, match=r"50 missing: layer0, layer1, layer2, \.\.\."):
        explain_mismatch(many, {}, "a.pth", "the student")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a") == expected
