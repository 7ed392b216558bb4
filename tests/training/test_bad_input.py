"""Wrong input ends with exit code 2 and one or two lines: what, where, how to mend it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from deit.student import create_student

ROOT = Path(__file__).resolve().parents[2]

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, narrow: None) -> None:
    """In an empty folder, with no ckpts/ in the repository either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("srd.files.released.PACKAGE", tmp_path)


@pytest.fixture
def refused(deit: Any, tmp_path: Path) -> Refused:
    """Runs a command that must be refused; returns what it said."""

    def call(*arguments: object) -> str:
        outcome = deit(*arguments)
        assert outcome.code == 2, outcome
        lines = outcome.err.splitlines()
        assert 1 <= len(lines) <= 2 and all(lines), outcome.err
        assert outcome.err.startswith("error: ") and len(outcome.err) < 500
        assert "Traceback" not in outcome.err and outcome.out == ""
        assert not list(tmp_path.glob("runs/*")), "refused input leaves no run behind"
        return outcome.err

    return call


@pytest.fixture
def folder(tmp_path: Path, make_jpegs: Any) -> Callable[[Mapping[str, int]], Path]:
    return lambda counts: make_jpegs(tmp_path / "images", counts)


TWO = {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1}
ALONE = ("--train_student", "--distillation=none", "--workers=0", "--batch-size=2")


@pytest.mark.parametrize("mode", [(), ("--train_student",), ("--train_teacher",)])
def test_no_data_path(refused: Refused, tmp_path: Path, mode: tuple[str, ...]) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "some.pth")
    more = () if mode else ("--checkpoint=some.pth",)
    said = refused(*mode, *more)
    assert "--data-path" in said and "--dataset digits" in said


def test_attention_of_one_position_is_refused(refused: Refused, recipe: Path) -> None:
    said = refused("--train_student", f"--config={recipe}", "--distillation=at")
    assert "the student's map has only 1" in said


def test_a_missing_checkpoint_is_told_before_missing_data(refused: Refused) -> None:
    assert "no checkpoint at nowhere.pth" in refused("--checkpoint=nowhere.pth")


def test_an_unknown_student_is_told_before_a_teacher_is_fetched(
    refused: Refused, folder: Any
) -> None:
    images = folder(TWO)
    assert "tinny" in refused(
        "--train_student", "--model=tinny", f"--data-path={images}", "--workers=0", "--batch-size=2"
    )


def test_a_single_class(refused: Refused, folder: Any) -> None:
    images = folder({"train/cat": 2, "val/cat": 1})
    assert "of one class, cat" in refused(*ALONE, f"--data-path={images}")


def test_no_data_at_the_path(refused: Refused, tmp_path: Path) -> None:
    said = refused(*ALONE, f"--data-path={tmp_path / 'nothing'}")
    assert str(tmp_path / "nothing" / "train") in said and "--dataset digits" in said


def test_no_val_folder(refused: Refused, folder: Any) -> None:
    images = folder({"train/cat": 1})
    assert "class cat has 1 image" in refused(*ALONE, f"--data-path={images}")


def test_no_class_folders(refused: Refused, folder: Any) -> None:
    images = folder(TWO | {"train": 1})
    for split in ("cat", "dog"):
        (images / "train" / split).rename(images / split)
    assert str(images / "train") in refused(*ALONE, f"--data-path={images}")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder(refused: Refused, folder: Any, split: str) -> None:
    images = folder(TWO | {f"{split}/fox": 0})
    assert str(images / split / "fox") in refused(*ALONE, f"--data-path={images}")


def test_fewer_classes_in_val(refused: Refused, folder: Any) -> None:
    said = refused(*ALONE, f"--data-path={folder(TWO | {'train/fox': 2})}")
    assert "3 classes in train, 2 in val" in said and "fox" in said


def test_other_classes_in_val(refused: Refused, folder: Any) -> None:
    images = folder({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/fox": 1})
    said = refused(*ALONE, f"--data-path={images}")
    assert "dog" in said and "fox" in said and "cat" not in said.replace(str(images), "")


def test_fewer_images_than_a_batch(refused: Refused, folder: Any) -> None:
    said = refused(*ALONE, f"--data-path={folder(TWO)}", "--batch-size=6")
    assert "6" in said and "4" in said and "--batch-size" in said


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_image(deit: Any, folder: Any, split: str) -> None:
    images = folder(TWO)
    (images / split / "dog" / "0.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    outcome = deit(*ALONE, f"--data-path={images}", "--set=model.image_size=16", "--epochs=1")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    last = outcome.err.splitlines()[-1]
    assert str(images / split / "dog" / "0.jpg") in last and "data.skip_broken" in last


def student_file(path: Path, classes: int = 10, size: int = 16, **changes: Any) -> Path:
    weights = create_student("tiny", num_classes=classes, image_size=size).state_dict()
    torch.save({"model": {**weights, **changes}}, path)
    return path


@pytest.fixture
def evaluation(recipe: Path) -> tuple[str, ...]:
    return ("--model=tiny", f"--config={recipe}")


def test_nothing_to_evaluate(refused: Refused, evaluation: Any) -> None:
    said = refused(*evaluation)
    assert "ckpts/deit_tiny/ckpt_epoch_299.pth" in said and "--checkpoint" in said


def test_a_missing_checkpoint(refused: Refused, evaluation: Any) -> None:
    assert "nowhere.pth" in refused(*evaluation, "--checkpoint=nowhere.pth")


def test_a_checkpoint_of_other_classes(refused: Refused, evaluation: Any, tmp_path: Path) -> None:
    said = refused(*evaluation, "--checkpoint", student_file(tmp_path / "a.pth", classes=7))
    assert "a.pth" in said and "10 classes" in said and "head.weight (7, 24) instead of" in said


def test_a_checkpoint_of_another_width(refused: Refused, evaluation: Any, tmp_path: Path) -> None:
    file = student_file(tmp_path / "a.pth")
    said = refused(*evaluation, "--model=small", "--checkpoint", file)
    assert "deit_small" in said and "instead of" in said


def test_a_checkpoint_of_another_image_size(
    refused: Refused, evaluation: Any, tmp_path: Path
) -> None:
    said = refused(*evaluation, "--checkpoint", student_file(tmp_path / "a.pth", size=32))
    assert "pos_embed (1, 6, 24) instead of (1, 3, 24)" in said and "16x16" in said


def test_a_checkpoint_of_another_network(refused: Refused, evaluation: Any, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    said = refused(*evaluation, "--checkpoint=resnet.pth")
    assert "does not fit" in said and "missing" in said and "unexpected" in said


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00."],
    ids=["empty", "text", "zip", "pickle"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_foreign_checkpoint(
    refused: Refused, evaluation: Any, tmp_path: Path, content: bytes, suffix: str
) -> None:
    (tmp_path / f"foreign{suffix}").write_bytes(content)
    assert f"foreign{suffix}" in refused(*evaluation, f"--checkpoint=foreign{suffix}")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint(
    refused: Refused, evaluation: Any, tmp_path: Path, kept: float
) -> None:
    content = student_file(tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(kept * len(content))])
    assert "a.pth is damaged" in refused(*evaluation, "--checkpoint=a.pth")


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def test_a_checkpoint_that_asks_to_be_executed(
    refused: Refused, evaluation: Any, tmp_path: Path
) -> None:
    torch.save({"model": {}, "config": Attack()}, tmp_path / "evil.pth")
    assert "evil.pth" in refused(*evaluation, "--checkpoint=evil.pth")
    assert not (tmp_path / "attacked").exists()


@pytest.fixture
def distil(recipe: Path) -> tuple[str, ...]:
    return ("--train_student", f"--config={recipe}", "--output=runs")


def test_no_teacher_file_and_no_network(refused: Refused, folder: Any) -> None:
    """The paper's teacher has 1,000 classes, so the data must, too."""
    images = folder({f"{split}/{i:04}": 1 for split in ("train", "val") for i in range(1000)})
    said = refused(*ALONE[:1], f"--data-path={images}", "--batch-size=2", "--workers=0")
    assert "regnety_160-a5fe301d.pth" in said and "ckpts/" in said
    assert "--teacher-checkpoint" in said


def test_a_missing_teacher_file(refused: Refused, distil: Any) -> None:
    assert "nowhere.pth" in refused(*distil, "--teacher-checkpoint=nowhere.pth")


def test_a_teachers_file_that_is_not_what_its_name_claims(
    refused: Refused, distil: Any, tmp_path: Path, random_teacher: Path
) -> None:
    (tmp_path / "regnety_160-a5fe301d.pth").write_bytes(random_teacher.read_bytes())
    said = refused(*distil, "--teacher-checkpoint=regnety_160-a5fe301d.pth")
    assert "a5fe301d" in said and "SHA-256" in said


def test_a_teacher_of_other_classes(refused: Refused, distil: Any, tmp_path: Path) -> None:
    model = timm.create_model("test_byobnet", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "three.pth")
    said = refused(*distil, "--teacher-checkpoint=three.pth", "--distillation=kd")
    assert "test_byobnet has no head for the 10 classes" in said and "kd reads its logits" in said


def test_a_teacher_of_another_kind(refused: Refused, distil: Any) -> None:
    assert "does not fit test_resnet" in refused(*distil, "--teacher=test_resnet")


def test_a_truncated_teacher(refused: Refused, distil: Any, random_teacher: Path) -> None:
    Path("torn.pth").write_bytes(random_teacher.read_bytes()[:10_000])
    assert "torn.pth" in refused(*distil, "--teacher-checkpoint=torn.pth")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model=tinny", ["unknown student 'tinny'", "'tiny'"]),
        ("--teacher=regnety_16", ["regnety_16", "did you mean 'regnety_160'"]),
        ("--teacher=regnety_160.of_mine", ["regnety_160.of_mine"]),
        ("--epoch=3", ["--epoch", "did you mean '--epochs'"]),
        ("--train_studnet", ["--train_studnet", "--train"]),
        ("student", ["student: no value is expected there"]),
        ("--batch-size", ["--batch-size", "expected one argument"]),
        ("--batch-size=many", ["train.batch_size", "--batch-size", "integer", "'many'"]),
        ("--batch-size=0", ["train.batch_size", "greater than or equal to 1"]),
        ("--batch-size=7", ["train.batch_size 7 is odd", "8"]),
        ("--epochs=2.5", ["train.epochs", "2.5"]),
        ("--epochs=-1", ["train.epochs", "-1"]),
        ("--seed=-1", ["seed", "-1"]),
        ("--workers=-1", ["data.workers"]),
        ("--device=tpu", ["device", "tpu", "'auto', 'cpu' or 'cuda'"]),
        ("--amp=fp8", ["amp", "fp8"]),
        ("--amp=fp16 --device=cpu", ["fp16", "GPU"]),
        ("--amp=fp64 --set=teacher.bf16=true", ["teacher.bf16", "double precision"]),
        ("--amp=bf16 --set=teacher.bf16=true", ["teacher.bf16 has no effect with amp bf16"]),
        ("--distillation=srdd", ["distill.loss", "srdd", "'srd'"]),
        ("--dataset=mnist", ["data.dataset", "mnist", "digits"]),
        ("--set=model.image_size=100", ["100x100", "16", "--image-size 96"]),
        ("--set=optim.lr=0", ["optim.lr", "greater than 0"]),
        ("--set=optim.lr=fast", ["optim.lr", "number", "fast"]),
        ("--set=optim.betas=[0.9,1.0]", ["optim.betas", "less than 1"]),
        ("--set=augment.crop_ratio=[2,1]", ["augment.crop_ratio"]),
        ("--name=", ["name"]),
        ("--name=../x", ["name", "below --output"]),
        ("--name=/tmp/x", ["name", "below --output"]),
        ("--name=" + "x" * 300, ["name", "at most 200 bytes"]),
        ("--name=a\0b", ["name", "printable"]),
        ("--output=a\0b", ["output", "NUL"]),
        ("--output=~nobody-here/x", ["output", "home"]),
        ("--data-path=a\0b", ["data.path", "NUL"]),
        ("--config=" + "x" * 300, ["no such file"]),
        ("--resume=/dev/zero", ["no checkpoint at /dev/zero"]),
        ("--seed=100000000000000000000", ["seed", "less than"]),
        ("--epochs=100000000000000000000", ["train.epochs", "less than"]),
        ("--set=train.keep_last=100000000000000000000", ["train.keep_last", "less than"]),
        ("--set=optim.lr_batch=1e40", ["optim.lr_batch"]),
        ("--set=optim.lr=1e300", ["optim.lr", "less than"]),
        ("--set=optim.warmup_epochs=1e308", ["optim.warmup_epochs", "less than"]),
        ("--set=model.image_size=100000", ["model.image_size", "less than"]),
        ("--set=data.eval_crop=1e-9", ["data.eval_crop", "greater than"]),
        ("--set=augment.erase_count=1000000000", ["augment.erase_count", "less than"]),
        ("--set=data.workers=true", ["data.workers", "number, not True"]),
        ("--set=optim.lrr=1", ["optim.lrr", "did you mean 'optim.lr'"]),
        ("--set=lr=1", ["lr", "optim.lr"]),
        ("--set=optimm.lr=1", ["optimm", "did you mean 'optim"]),
        ("--set=optim.lr", ["--set optim.lr", "key=value"]),
        ("--set=data.mean=[1,2]", ["data.mean"]),
        ("--set=augment.rand_augment=randy", ["augment.rand_augment", "randy"]),
        ("--set=augment.crop_scale=[1,0.1]", ["augment.crop_scale"]),
        ("--config=nowhere.yaml", ["nowhere.yaml"]),
        ("--resume=nowhere.pth", ["nowhere.pth"]),
        ("--train_teacher", ["--train-teacher", "not allowed with"]),
        ("--checkpoint=some.pth", ["--checkpoint", "--resume"]),
    ],
    ids=str,
)
def test_a_flag_that_is_wrong(refused: Refused, recipe: Path, flags: str, said: list[str]) -> None:
    mended = "--set=teacher.checkpoint=null" if "--teacher" in flags else "--seed=0"
    message = refused("--train_student", f"--config={recipe}", mended, *flags.split())
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trian: {epochs: 1}", ["trian", "did you mean 'train"]),
        ("train: {epoch: 1}", ["train.epoch", "did you mean 'train.epochs'"]),
        ("train: {epochs: many}", ["train.epochs", "integer", "many"]),
        ("train: [1]", ["train"]),
        ("train: {epochs: 1", ["line"]),
        ("- 1", ["list"]),
    ],
)
def test_a_yaml_file_that_is_wrong(refused: Refused, text: str, said: list[str]) -> None:
    Path("mine.yaml").write_text(text)
    message = refused("--train_student", "--config=mine.yaml")
    assert "mine.yaml" in message and all(part in message for part in said), message


@pytest.mark.parametrize("blocker", ["a file", "a file in it"])
def test_an_output_folder_that_cannot_be_written(
    deit: Any, recipe: Path, tmp_path: Path, blocker: str
) -> None:
    """A file stands where the folder should be (permissions do not stop root)."""
    place = tmp_path / "out"
    if blocker == "a file in it":
        place.mkdir()
        place /= "run"
    place.write_text("")
    outcome = deit("--train_student", f"--config={recipe}", f"--output={tmp_path / 'out'}",
                   "--name=run", "--distillation=none")  # fmt: skip
    assert outcome.code == 2 and str(tmp_path / "out" / "run") in outcome.err
    assert "--output" in outcome.err and len(outcome.err.splitlines()) <= 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(refused: Refused, recipe: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    command = ("--train_student", f"--config={recipe}", "--distillation=none")
    assert "locked" in refused(*command, "--output=locked")


def test_resuming_what_is_no_run(refused: Refused, distil: Any, random_teacher: Path) -> None:
    assert "not a checkpoint of a run" in refused(*distil, f"--resume={random_teacher}")


def test_resuming_a_student_as_a_teacher(
    deit: Any, refused: Refused, recipe: Path, tmp_path: Path
) -> None:
    common = (f"--config={recipe}", f"--output={tmp_path / 'out'}", "--name=run", "--epochs=1")
    assert deit("--train_student", "--distillation=none", *common).code == 0
    said = refused("--train_teacher", *common)
    assert "trained: student -> teacher" in said


def test_the_command_itself_says_it_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "deit" / "main.py"), "--modle", "tiny"],
        env={**os.environ, "PYTHONPATH": ""}, cwd=tmp_path, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "did you mean '--model'" in done.stderr
