"""Wrong input: exit code 2, one or two lines that say what, where and how to mend; no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deit.student import create_student
from tests.conftest import Command, make_folder


@pytest.fixture
def refused(command: Command, capsys: pytest.CaptureFixture[str]):
    """Run the command line, which must refuse; returns what it said."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert command(*arguments) == 2
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in said
        return lines[0]

    return call


TRAIN = (
    "--train_student",
    "--distillation=none",
    "--device=cpu",
    "--workers=0",
    "--batch-size=4",
    "--epochs=1",
)


def test_no_data_says_what_was_looked_for_and_names_the_digits(refused, tmp_path: Path) -> None:
    said = refused(*TRAIN, f"--data-path={tmp_path / 'nope'}")
    assert f"{tmp_path / 'nope'}/train/<class>/<image>" in said and "--dataset digits" in said
    assert "--data-path" in refused(*TRAIN)


def test_an_empty_class_folder_is_named(refused, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "d", {"a": 4, "b": 0}, {"a": 1, "b": 1})
    assert str(data / "train/b") in refused(*TRAIN, f"--data-path={data}")


@pytest.mark.parametrize(
    ("val", "named"), [({"a": 1}, "missing from val: b"), ({"a": 1, "c": 1}, "only in val: c")]
)
def test_other_classes_in_val_are_named(
    val: dict[str, int], named: str, refused, tmp_path: Path
) -> None:
    data = make_folder(tmp_path / "d", {"a": 4, "b": 4}, val)
    assert named in refused(*TRAIN, f"--data-path={data}")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model=tin"], "'tiny', 'small' or 'base'"),
        (["--modle=tiny"], "did you mean '--model'"),
        (["--teacher=regnetyy_002", "--distillation=srd"], "did you mean 'regnety_002'"),
        (["--set=trian.epochs=3"], "unknown key 'trian'"),
        (["--set=train.epoch=3"], "did you mean 'train.epochs'"),
        (["--set=epochs=3"], "did you mean 'train.epochs'"),
        (["--epochs=many"], "train.epochs in --epochs"),
        (["--epochs=0"], "greater than or equal to 1"),
        (["--set=model.image_size=100"], "multiple of 16"),
        (["--set=augment.mixup=-1"], "augment.mixup"),
        (["--set=augment.rand_augment=nonsense"], "rand_augment"),
        (["--batch-size=5"], "is odd"),
        (["--batch-size=2000"], "larger than the 1297"),
        (["--distillation=crd"], "'srd', 'kd' or 'none'"),
        (["--device=tpu"], "--device"),
        (["--amp=fp16"], "needs a GPU"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--train_teacher"], "not allowed with"),
        (["--checkpoint=x.pth"], "--resume FILE"),
        (["--resume=nowhere.pth"], "nowhere.pth"),
        (["--set"], "expected"),
    ],
)
def test_wrong_flags_and_values(flags: list[str], named: str, refused, tmp_path: Path) -> None:
    digits = ["--dataset=digits", "--set=model.image_size=32", f"--output={tmp_path}"]
    assert named in refused(*TRAIN, *digits, *flags)


def test_a_gpu_that_is_not_there(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --device cpu" in refused(*TRAIN, "--dataset=digits", "--device=cuda")


def test_yaml_with_unknown_keys_or_broken_lines(refused, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train:\n  epochz: 3\n")
    said = refused(*TRAIN, f"--config={path}")
    assert "train.epochz" in said and str(path) in said and "train.epochs" in said
    path.write_text("train: {\n epochs: 3\n")
    assert f"{path}, line" in refused(*TRAIN, f"--config={path}")


def test_an_output_folder_that_cannot_be_written(refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(
        *TRAIN, "--dataset=digits", "--set=model.image_size=32", f"--output={tmp_path / 'file'}"
    )
    assert "cannot write the output folder" in said


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A plain checkpoint of DeiT-tiny for ten classes at 32 pixels."""
    torch.save({"model": create_student("tiny", 10, 32).state_dict()}, tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model=small"], "instead of"),
        (["--set=model.image_size=64"], "pos_embed (1, 6, 192) instead of (1, 18, 192)"),
    ],
)
def test_weights_that_do_not_fit(flags: list[str], named: str, refused, tiny_file: Path) -> None:
    evaluate = [
        "--dataset=digits",
        "--device=cpu",
        "--set=model.image_size=32",
        f"--checkpoint={tiny_file}",
    ]
    assert named in refused(*evaluate, *flags)


def test_weights_for_other_classes(refused, tiny_file: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "d", {}, {"a": 1, "b": 1})
    said = refused(f"--data-path={data}", "--set=model.image_size=32", f"--checkpoint={tiny_file}")
    assert "head.weight (10, 192) instead of (2, 192)" in said


def test_damaged_foreign_and_missing_checkpoints(refused, tiny_file: Path, tmp_path: Path) -> None:
    def said(path: Path) -> str:
        return refused("--dataset=digits", "--set=model.image_size=32", f"--checkpoint={path}")

    whole = tiny_file.read_bytes()
    tiny_file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in said(tiny_file)
    tiny_file.write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    assert "not a checkpoint" in said(tiny_file)
    torch.save({"model": {"other.weight": torch.zeros(2)}}, tiny_file)
    assert "missing" in said(tiny_file)
    assert "no checkpoint at" in said(tmp_path / "nowhere.pth")


def test_nothing_to_evaluate_says_where_to_put_it(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deit.evaluation.in_ckpts", lambda *names: None)
    assert "ckpts/deit_small/ckpt_epoch_299.pth" in refused("--model=small")


def test_a_teacher_file_that_is_missing(refused, tmp_path: Path) -> None:
    flags = [
        "--dataset=digits",
        "--distillation=srd",
        "--teacher-checkpoint=gone.pth",
        f"--output={tmp_path}",
    ]
    assert "no teacher weights at gone.pth" in refused(*TRAIN, *flags)
