"""Where weights are looked for: files, runs' folders, and a Hub on a port of this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from srd.errors import UserError
from srd.files.checkpoint import load_weights, save_state, save_weights
from srd.files.locate import RUN_FILES, locate
from srd.run.folder import RunFolder
from tests.files.made import WEIGHTS, assert_same, one_line, zipped
from tests.files.servers import Server, serving

ROOT = Path(__file__).resolve().parents[2]


def test_a_runs_folder_gives_its_best_student(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "run")
    assert [run.path / name for name in RUN_FILES] == [run.student, run.best, run.last]
    for number, path in enumerate((run.last, run.best), 1):
        save_state(path, {"model": {"a": WEIGHTS["head.bias"] * number}})
        assert load_weights(run.path)["a"].tolist() == [number, -number]
        assert locate(run.path) == path
    save_weights(run.student, WEIGHTS, {})
    assert_same(dict(sorted(load_weights(str(run.path)).items(), reverse=True)))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path)
    said = one_line(caught, tmp_path)
    assert "not a run's" in said and "student.safetensors" in said


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(zipped(WEIGHTS))
    assert_same(load_weights("~/a.pth"))


def test_things_that_are_no_files_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="no checkpoint at"):
            load_weights(path)


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:alone", "hf-hub:a/b@", "hf-hub:a/b/", "hf-hub:a/b@c d"]
)
def test_a_name_on_the_hub_that_is_none(name: str) -> None:
    with pytest.raises(UserError, match=r"expected hf-hub:user/repository\[@revision\]\[/file\]"):
        load_weights(name)


def hub(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"/{path}": data for path, data in files.items()}


def load(address: str, cache: Path, *names: str) -> tuple[int, str]:
    """The exit code and the words of a fresh Python that loads `names` from a Hub at `address`."""
    code = (
        "import sys; from srd.files.checkpoint import load_weights; from srd.errors import exit_code\n"
        "for name in sys.argv[1:]:\n"
        "    run = lambda: print({k: v.sum().item() for k, v in load_weights(name).items()})\n"
        "    if code := exit_code(run): sys.exit(code)"
    )
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT),
                "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**clean, **settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def commit(server: Server) -> None:
    server.headers = {"X-Repo-Commit": hashlib.sha1(b"commit").hexdigest()}


@pytest.mark.slow
def test_names_on_the_hub(tmp_path: Path) -> None:
    tensors = safetensors.torch.save(WEIGHTS)
    files = {
        "me/both/resolve/main/model.safetensors": tensors,
        "me/both/resolve/main/pytorch_model.bin": b"not asked for",
        "me/old/resolve/v1.0/pytorch_model.bin": zipped(WEIGHTS),
        "me/named/resolve/main/sub/a.pth": zipped({"state_dict": WEIGHTS}),
    }
    expected = "'head.weight': 15.0"
    with serving(hub(files)) as server:
        commit(server)
        there = ["hf-hub:me/both", "hf-hub:me/old@v1.0", "hf-hub:me/named/sub/a.pth"]
        code, said = load(server.address, tmp_path, *there, "hf-hub:me/named")
        assert said.count(expected) == 3, said
        assert code == 2 and "no model.safetensors nor pytorch_model.bin" in said, said
        gone = server.address
    code, said = load(gone, tmp_path, "hf-hub:me/both", "hf-hub:me/other")
    assert expected in said, "what was fetched once needs no network"
    assert code == 2 and "cannot be reached" in said and said.count("\n") == 2, said
