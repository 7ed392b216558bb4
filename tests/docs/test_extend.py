"""docs/extend.md, block by block: what a reader writes and calls, in a folder of their own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch

from deit import main as deit
from srd.commands import export
from srd.data.sources import SOURCES
from srd.errors import exit_code
from srd.export.formats import FORMATS
from srd.files.checkpoint import load_file, load_weights
from srd.method.losses import LOSSES
from srd.models.students import STUDENTS
from tests.docs.pages import ROOT, blocks
from tests.docs.test_commands import lines

PAGE = ROOT / "docs" / "extend.md"
FILES = {
    block.text.partition("\n")[0].removeprefix("# "): block.text
    for language in ("python", "yaml")
    for block in blocks(PAGE, language)
}
COMMANDS = [shlex.split(line) for block in blocks(PAGE, "bash") for line in lines(block)]
RUN: dict[str, Callable[[list[str]], None]] = {"mine.py": deit.run, "my_export.py": export.run}


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, imported; the tables are as they were afterwards."""
    folder = tmp_path_factory.mktemp("mine")
    write_files(folder)
    tables = (LOSSES, STUDENTS, SOURCES, FORMATS)
    before = [dict(table) for table in tables]
    modules = [Path(name).stem for name in FILES if name.endswith(".py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for module in modules:
            import_module(module)
        yield folder
    for module in modules:
        del sys.modules[module]
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def call(file: str) -> list[int]:
    """The page's commands of that file, in order; their exit codes."""
    given = [words[2:] for words in COMMANDS if words[:2] == ["python", file]]
    return [exit_code(lambda words=words: RUN[file](words)) for words in given]


def result(run: Path) -> dict[str, object]:
    return json.loads((run / "result.json").read_text())


def test_the_page_names_what_is_tested_here() -> None:
    assert set(FILES) == {
        "mine.py", "my_loss.py", "my_student.py", "my_data.py", "my_teacher.py", "stripes.yaml",
        "my_format.py", "my_export.py", "my_task.py", "my_half.py",
    }  # fmt: skip
    assert {words[1] for words in COMMANDS} == {*RUN, "my_half.py"}


def test_a_loss_a_student_a_source_and_a_teacher_train_together(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("mine.py") == [0, 0, 0]
    teacher, student = (result(written / "runs" / name) for name in ("stripes_teacher", "mine"))
    assert teacher["acc1"] == 100 and student["acc1"] == 100  # lying and standing stripes
    assert (student["model"], student["teacher"], student["method"], student["dataset"]) == (
        "small_cnn", "ensemble", "cosine", "stripes"
    )  # fmt: skip
    assert student["class_names"] == ["lying", "standing"] and student["images"] == 32
    assert "acc1 100.00" in capsys.readouterr().out.splitlines()[-1]
    saved = load_file(written / "runs/mine/checkpoints/last.pth")["model"]
    projector = saved["distillation_loss.projector.weight"]
    assert projector.shape == (teacher_width(), 64), (
        "the loss's projector is saved with the student"
    )


def teacher_width() -> int:
    """Of the ensemble: of both networks together."""
    names = ("test_resnet", "test_byobnet")
    return sum(timm.create_model(name).num_features for name in names)


def test_mistakes_in_them_are_told_like_all_others(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--distillation=cosin"], "did you mean 'cosine'"),
        (["--distillation=cosine", "--set=distill.loss.scale=0"], "distill.loss.scale"),
        (["--distillation=cosine", "--set=distill.loss.scal=1"], "unknown key 'distill.loss.scal'"),
        (["--distillation=none", "--model=small_cnm"], "did you mean 'small_cnn'"),
        (
            ["--distillation=none", "--model=small_cnn", "--set=model.drop_path=0.1"],
            "small_cnn has no drop path",
        ),
        (["--dataset=stripe"], "did you mean 'stripes'"),
        (["--teacher=ensembl"], "did you mean 'ensemble'"),
    ):
        given = ["--train_student", "--config=stripes.yaml", "--name=wrong", *words]
        assert exit_code(lambda given=given: deit.run(given)) == 2
        assert told in capsys.readouterr().err, words
    assert not (written / "runs/wrong").exists()


def test_the_loss_stands_alone(written: Path) -> None:
    loss = import_module("my_loss").Cosine(4, 6, scale=2.0).double()
    z_s, z_t = torch.randn(5, 4).double(), torch.randn(5, 6).double()
    s = loss.projector(z_s)
    cosines = (s * z_t).sum(1) / (s.square().sum(1) * z_t.square().sum(1)).sqrt()
    assert torch.allclose(loss(z_s, z_t), 2 * (1 - cosines).mean())


def test_a_format(written: Path) -> None:
    deit.run(
        ["--train_teacher", "--teacher=test_resnet", "--config=stripes.yaml", "--name=my_run",
         "--epochs=1"]
    )  # fmt: skip
    assert call("my_export.py") == [0]
    folder = written / "exports" / "my_run"
    whole = load_weights(folder / "model.safetensors")
    half = load_weights(folder / "model.half.safetensors")
    assert all(torch.equal(half[name], value.half()) for name, value in whole.items())
    assert "my_run in half precision" in (folder / "README.md").read_text()


def test_a_half(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = re.search(r'if __name__ == "__main__":\n((?:    .+\n)+)', FILES["my_half.py"])
    assert train is not None
    names = vars(import_module("my_half"))
    exec(train[1].replace("    ", ""), names)
    done = result(written / "runs/copying")
    assert (done["model"], done["dataset"], done["images"]) == ("test_resnet", "digits", 500)
    rows = (written / "runs/copying/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows if '"kind": "epoch"' in row]
    assert len(losses) == 2 and losses[1] < losses[0]
    exec(train[1].replace("    ", ""), names)
    assert "already finished" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_as_they_stand(tmp_path: Path) -> None:
    write_files(tmp_path)
    for words in COMMANDS:
        if words[1] != "my_export.py":
            subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True, timeout=300)
    assert result(tmp_path / "runs/mine")["acc1"] == 100
