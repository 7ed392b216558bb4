"""`srd predict`: where pictures come from, what is printed, and what happens to broken ones."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deit.student import create_student
from tests.export.conftest import Command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> object:
    """`stdin(b"...")` is what standard input will bring."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


def images_in(text: str) -> list[str]:
    return [json.loads(line)["image"] for line in text.splitlines()]


def test_a_table_for_people(predicting: Command, deit_folder: Path, pictures: list[Path]) -> None:
    done = predicting(deit_folder, pictures[0], pictures[1], "--top=3", "--device=cpu")
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) == 8
    assert lines[0] == str(pictures[0]) and lines[4] == str(pictures[1])
    percent, sign, number, label = lines[1].split()
    assert 10 < float(percent) < 100 and sign == "%" and number == label
    assert float(percent) >= float(lines[2].split()[0]) >= float(lines[3].split()[0])


def test_folders_are_searched_recursively(
    predicting: Command, deit_folder: Path, pictures: list[Path]
) -> None:
    folder = pictures[0].parent
    (folder / "notes.txt").write_text("not a picture")
    (folder / "clip.mp4").write_bytes(b"\0")
    done = predicting(deit_folder, folder, "--json", "--device=cpu")
    assert done.code == 0 and images_in(done.out) == sorted(str(path) for path in pictures)
    told = done.err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"skipped in {folder}: ")
    assert "1 .txt" in told[0] and "1 .mp4" in told[0] and told[0].endswith("videos are not read")


def test_a_video_and_a_folder_without_pictures_stop_nobody(
    predicting: Command, deit_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "clip.MOV").write_bytes(b"\0")
    given = (tmp_path / "clip.MOV", empty, pictures[0])
    done = predicting(deit_folder, *given, "--json", "--device=cpu")
    assert done.code == 2 and images_in(done.out) == [str(pictures[0])]
    told = done.err.splitlines()
    assert "clip.MOV (a video: save the frames" in told[0] and "no pictures in it" in told[1]
    assert "2 of 3" in told[2] and len(told) == 3


def test_many_pictures_come_in_order_from_several_workers(
    predicting: Command, deit_folder: Path, pictures: list[Path]
) -> None:
    one = predicting(deit_folder, *pictures, "--json", "--device=cpu")
    many = predicting(deit_folder, *pictures, "--json", "--device=cpu", "--batch-size=2")
    assert images_in(one.out) == images_in(many.out)
    for mine, theirs in zip(one.out.splitlines(), many.out.splitlines(), strict=True):
        first, second = json.loads(mine)["top"], json.loads(theirs)["top"]
        for a, b in zip(first, second, strict=True):
            assert a["class"] == b["class"]
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


def test_standard_input_brings_a_list_of_files(
    predicting: Command, deit_folder: Path, pictures: list[Path], stdin: object
) -> None:
    stdin(f"{pictures[2]}\r\n\n{pictures[3].parent}\n".encode())  # type: ignore[operator]
    done = predicting(deit_folder, "-", "--json", "--device=cpu")
    assert done.code == 0 and images_in(done.out) == [str(path) for path in pictures[2:]]


def test_standard_input_brings_a_picture(
    predicting: Command, deit_folder: Path, pictures: list[Path], stdin: object
) -> None:
    named = predicting(deit_folder, pictures[0], "--device=cpu")
    stdin(pictures[0].read_bytes())  # type: ignore[operator]
    piped = predicting(deit_folder, "-", "--device=cpu")
    assert piped.code == 0
    assert piped.out == named.out.replace(str(pictures[0]), "standard input")


def test_a_broken_picture_is_named_and_the_rest_go_on(
    predicting: Command, deit_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "half.png").write_bytes(pictures[0].read_bytes()[:70])
    (tmp_path / "page.jpg").write_text("<html>")
    bad = [tmp_path / "half.png", tmp_path / "page.jpg", tmp_path / "nowhere.png"]
    order = [bad[0], pictures[0], bad[1], bad[2], pictures[1]]
    done = predicting(deit_folder, *order, "--json", "--device=cpu", "--batch-size=2")
    assert done.code == 2
    assert images_in(done.out) == [str(pictures[0]), str(pictures[1])]
    told = done.err.splitlines()
    assert [line.split(" (")[0] for line in told[:3]] == [f"cannot read {path}" for path in bad]
    assert "No such file" in told[2] and "3 of 5" in told[3] and len(told) == 4


def test_a_released_file_knows_imagenets_classes(
    predicting: Command, exporting: Command, pictures: list[Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    student = create_student("tiny", 1000, 32)
    with torch.no_grad():
        student.head.bias[281] = student.head_conv.bias[281] = 50.0
    projector = {"distillation_loss.embed.weight": torch.zeros(7, 192)}
    weights = {f"module.{k}": v for k, v in {**student.state_dict(), **projector}.items()}
    torch.save({"model": weights, "epoch": 299, "config": {"DATA": {}}}, tmp_path / "ckpt.pth")
    done = predicting(tmp_path / "ckpt.pth", pictures[0], "--top=1", "--device=cpu")
    assert done.code == 0 and done.out.splitlines()[1].split(None, 3)[2:] == [
        "281",
        "tabby, tabby cat",
    ]
    folder = tmp_path / "out"
    assert exporting(tmp_path / "ckpt.pth", "--output", folder, "--format", "timm").code == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "srd_deit_tiny" and config["model_args"] == {"img_size": 32}
    assert config["label_names"][281] == "n02123045"
    assert config["label_descriptions"]["n02123045"] == "tabby, tabby cat"
    assert config["pretrained_cfg"]["crop_pct"] == 0.875
    card = (folder / "README.md").read_text()
    assert "not measured" in card and "imagenet-1k" in card
    assert predicting(folder, pictures[0], "--top=1", "--device=cpu").out == done.out


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_failure(
    deit_folder: Path, pictures: list[Path]
) -> None:
    command = [sys.executable, "scripts/predict.py", str(deit_folder), *map(str, pictures * 9)]
    running = subprocess.Popen(
        [*command, "--device=cpu"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None and running.stderr is not None
    assert running.stdout.readline().decode().strip() == str(pictures[0])
    running.stdout.close()
    assert running.wait(timeout=120) == 0 and b"Traceback" not in running.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "x.png"], "no checkpoint at nowhere"),
        (["x" * 300, "x.png"], "no checkpoint at xxx"),
        (["a\0b", "x.png"], "no checkpoint at a\\x00b"),
        (["~no.such.user/x", "y" * 300 + ".png"], "no checkpoint at ~no.such.user/x"),
        (["README.md", "x.png"], "README.md is damaged or not a checkpoint"),
        (["docs", "x.png"], "no student in docs"),
        (["nowhere.onnx", "x.png"], "no ONNX file"),
        (["any.pt2", "x.png"], "any.pt2 is a program"),
        (["FOLDER"], "IMAGE"),
        (["FOLDER", "EMPTY"], "no pictures in"),
        (["FOLDER", "x.png", "--top=0"], "--top"),
        (["FOLDER", "x.png", "--tpo=3"], "did you mean '--top'"),
        (["FOLDER", "-"], "no pictures"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    predicting: Command, deit_folder: Path, tmp_path: Path, arguments: list[str], told: str,
    stdin: object,
) -> None:  # fmt: skip
    stdin(b"")  # type: ignore[operator]
    places = {"FOLDER": str(deit_folder), "EMPTY": str(tmp_path)}
    done = predicting(*(places.get(argument, argument) for argument in arguments))
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("content", [b"\x00\x01\x02 neither", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_bytes_that_are_neither_picture_nor_list(
    predicting: Command, deit_folder: Path, content: bytes, stdin: object
) -> None:
    stdin(content)  # type: ignore[operator]
    done = predicting(deit_folder, "-", "--device=cpu")
    assert done.code == 2 and "standard input" in done.err


def test_an_onnx_file_of_somebody_else(
    predicting: Command, deit_folder: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(deit_folder / "model.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "other.onnx"))
    (tmp_path / "page.onnx").write_text("<html>")
    done = predicting(tmp_path / "other.onnx", "x.png")
    assert done.code == 2 and "does not say how its images" in done.err
    done = predicting(tmp_path / "page.onnx", "x.png")
    assert done.code == 2 and "not an ONNX file" in done.err


def test_an_exported_folder_with_damaged_parts(
    predicting: Command, deit_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((deit_folder / "config.json").read_text())
    weights = (deit_folder / "model.safetensors").read_bytes()
    for changed, told in (
        ({**config, "architecture": "srd_deit_tin"}, "did you mean 'srd_deit_tiny'"),
        ({**config, "num_classes": 3}, "of another shape"),
        ({"hello": "world"}, "does not describe a classifier"),
        ([], "does not describe a classifier"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        (tmp_path / "model.safetensors").write_bytes(weights)
        done = predicting(tmp_path, "x.png")
        assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done.err
