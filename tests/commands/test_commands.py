"""The console command: what it finds, what it says, and that it says it before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import srd
from srd.commands import SCRIPTS, find_command, run, usage
from srd.errors import UserError
from srd.installed import PROJECT, need_extra, registered, version
from tests.conftest import RunPython

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"train", "evaluate", "predict", "export", "report", "bench"}


def test_usage_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    run([])
    shown = capsys.readouterr().out
    assert shown == usage() + "\n"
    lines = dict(line.split(None, 1) for line in shown.partition("\n\n")[2].splitlines())
    assert set(lines) >= COMMANDS
    assert all(10 < len(text) < 90 for text in lines.values()), lines
    run(["--help"])
    assert capsys.readouterr().out == shown


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--version"])
    assert capsys.readouterr().out == f"srd {metadata.version(PROJECT)}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pridict"], "unknown command pridict (did you mean 'predict'?)"),
        (["--hepl"], "unknown command --hepl"),
        (["--help", "train"], "unknown argument train after --help"),
        (["--version", "1"], "unknown argument 1 after --version"),
        (["demo"], "scripts/demo.sh, of a checkout"),
        (["fetch_checkpoints"], "scripts/fetch_checkpoints.py, of a checkout"),
        (["predict", "model"], "IMAGE"),
        (["export", "--outptu", "x"], "did you mean '--output'"),
        (["report", "runs", "--png"], "--png"),
        (["train", "--modle", "tiny"], "did you mean '--model'"),
        (["evaluate", "--train_student"], "--train_student"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named_in_a_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_scripts_that_it_names_are_there() -> None:
    assert all((ROOT / "scripts" / file).is_file() for file in SCRIPTS.values())
    assert not set(SCRIPTS) & set(registered("srd.commands"))


def test_a_command_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "other-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[srd.commands]\ncount = other_counts:count\n")
    (tmp_path / "other_counts.py").write_text(
        'def count(arguments):\n    """Count."""\n    print(len(arguments))\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_command("count").__doc__ == "Count."
    assert "  count     Count.\n" in usage() and "predict" in usage()


def test_torch_is_not_imported_before_a_mistake_is_told(run_python: RunPython) -> None:
    mistakes = [["train", "--modle"], ["predict"], ["export", "a", "--format=x"], ["report"]]
    lines = [
        "import sys, srd",
        "from srd.commands import run",
        "from srd.errors import exit_code",
        "run([])",
        f"codes = [exit_code(lambda: run(arguments)) for arguments in {mistakes!r}]",
        "print(codes, {'torch', 'timm', 'numpy', 'matplotlib'} & set(sys.modules))",
    ]
    assert run_python("-c", "\n".join(lines)).splitlines()[-1] == "[2, 2, 2, 2] set()"


@pytest.mark.parametrize("name", ["predict", "export", "report"])
def test_scripts_are_the_same_commands_from_any_folder(name: str, tmp_path: Path) -> None:
    told = []
    for command in ([ROOT / "scripts" / f"{name}.py"], ["-m", "srd", name]):
        done = subprocess.run(
            [sys.executable, *map(str, command), "--nonsense"], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 2 and done.stdout == "", done.stderr
        told.append(done.stderr)
    assert told[0] == told[1] and told[0].count("\n") == 1


def test_what_is_public_is_imported_when_it_is_used() -> None:
    assert srd.__version__ == version()
    for name in srd.__all__:
        value = getattr(srd, name)
        assert value.__module__ == srd.HOMES[name] and name in dir(srd)
    with pytest.raises(AttributeError, match="no attribute 'create_studnet'"):
        srd.create_studnet  # type: ignore[attr-defined]


def test_an_extra_that_is_missing_names_what_installs_it() -> None:
    need_extra("dev", "pytest", what="tests")
    with pytest.raises(UserError) as caught:
        need_extra("export", "pytest", "no_such_package", what="ONNX files")
    expected = "ONNX files need no_such_package: pip install 'simple-recipe-distillation[export]'"
    assert str(caught.value) == expected


def test_files_that_are_not_installed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srd.installed.PROJECT", "no-such-distribution")
    for call in (version, lambda: registered("no.such.group")):
        with pytest.raises(UserError, match=r"pip install -e \."):
            call()
