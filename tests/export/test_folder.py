"""The exported folder: what is in it, what its card says, and that it is there whole or not at all."""

from __future__ import annotations

import ast
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml

from deit import main, srd_deit
from deit.student import create_student
from srd.data.image_source import read_image
from srd.export import graphs
from srd.files.checkpoint import load_weights
from tests.export.conftest import Command, train

ALL = {"README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors", "srd_deit.py"}


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_holds_everything_and_readable_by_all(deit_folder: Path) -> None:
    assert left_in(deit_folder) == ALL
    assert not any(name.startswith(".") for name in left_in(deit_folder.parent))
    assert (
        deit_folder.stat().st_mode & 0o777
        == deit_folder.parent.joinpath("student").stat().st_mode & 0o777
    )


def test_the_weights_are_the_runs_best_student(deit_run: Path, deit_folder: Path) -> None:
    best = load_weights(deit_run / "student.safetensors")
    found = safetensors.torch.load_file(deit_folder / "model.safetensors")
    assert set(found) == set(best)
    assert all(torch.equal(found[name], best[name]) for name in best)


def test_the_configuration_is_the_runs(deit_folder: Path) -> None:
    config = json.loads((deit_folder / "config.json").read_text())
    assert config["architecture"] == "srd_deit_tiny" and config["num_classes"] == 10
    assert config["label_names"] == list("0123456789")
    images = config["pretrained_cfg"]
    assert images["input_size"] == [3, 32, 32] and images["crop_pct"] == 0.9
    assert images["mean"] == [0.4, 0.5, 0.6] and images["interpolation"] == "bicubic"


def test_the_card_says_what_the_run_measured_and_no_more(
    deit_run: Path, deit_folder: Path, exporting: Command, tmp_path: Path
) -> None:
    result = json.loads((deit_run / "result.json").read_text())
    card = (deit_folder / "README.md").read_text()
    assert f"top-1 {result['best_acc1']:.2f} %" in card and "500 held-out images" in card
    assert "30 images" in card and "image_size: 32" in card
    assert str(deit_run.parent) not in card  # no places on somebody's disk
    about = front_matter(deit_folder)
    assert about["library_name"] == "timm" and about["license"] == "unknown"
    assert about["metrics"] == ["accuracy"] and "datasets" not in about
    # A copy of the weights without its run: nobody measured it.
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((deit_run / "student.safetensors").read_bytes())
    done = exporting(copy, "--output", tmp_path / "out", "--format", "timm", "--license", "cc0-1.0")
    assert done.code == 0 and "no run's configuration" in done.out
    assert "not measured" in (tmp_path / "out" / "README.md").read_text()
    assert front_matter(tmp_path / "out")["license"] == "cc0-1.0"


def test_the_last_checkpoint_has_the_last_accuracy(
    deit_run: Path, exporting: Command, tmp_path: Path
) -> None:
    result = json.loads((deit_run / "result.json").read_text())
    done = exporting(
        deit_run / "checkpoints" / "last.pth", "--output", tmp_path / "x", "--format=timm"
    )
    assert f"top-1 {result['acc1']:.2f} %, top-5 {result['acc5']:.2f} %" in done.out


def test_the_travelling_file_is_the_students_own_source(deit_folder: Path) -> None:
    text = (deit_folder / "srd_deit.py").read_text()
    assert text == Path(srd_deit.__file__).read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if name
    }
    assert imported == {"__future__", "functools", "timm", "torch", "typing"}


@pytest.mark.parametrize(
    ("formats", "files"),
    [
        (["safetensors"], {"model.safetensors"}),
        (["timm"], {"model.safetensors", "config.json", "srd_deit.py"}),
    ],
)
def test_only_the_formats_asked_for(
    deit_run: Path, exporting: Command, predicting: Command, pictures: list[Path], tmp_path: Path,
    formats: list[str], files: set[str],
) -> None:  # fmt: skip
    folder = tmp_path / "out"
    assert exporting(deit_run, "--output", folder, "--format", *formats).code == 0
    assert left_in(folder) == files | {"README.md"}
    whole = predicting(deit_run, pictures[0], "--json", "--top=1", "--device=cpu")
    part = predicting(folder, pictures[0], "--json", "--top=1", "--device=cpu")
    mine, theirs = (json.loads(done.out)["top"][0] for done in (whole, part))
    assert mine["class"] == theirs["class"]
    assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-4)


def test_a_folder_with_the_onnx_file_alone_predicts(
    deit_folder: Path, predicting: Command, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes((deit_folder / "model.onnx").read_bytes())
    whole, part = (predicting(f, pictures[0], "--device=cpu").out for f in (deit_folder, tmp_path))
    assert whole == part != ""


@pytest.mark.slow
def test_a_graph_that_computes_something_else_changes_nothing(
    deit_run: Path, exporting: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    assert exporting(deit_run, "--output", folder, "--format", "safetensors").code == 0
    forward = graphs.OnnxNetwork.forward
    monkeypatch.setattr(graphs.OnnxNetwork, "forward", lambda self, x: forward(self, x) + 2e-3)
    done = exporting(deit_run, "--output", folder, "--overwrite", "--format", "onnx")
    assert done.code == 1 and "model.onnx does not compute" in done.err
    assert left_in(tmp_path) == {"out"}
    assert left_in(folder) == {"README.md", "model.safetensors"}


def test_an_earlier_export_is_replaced_only_when_asked(
    deit_run: Path, exporting: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert exporting(deit_run, "--output", folder, "--format", "timm").code == 0
    done = exporting(deit_run, "--output", folder, "--format", "safetensors")
    assert done.code == 2 and "--overwrite" in done.err and "config.json" in left_in(folder)
    before = left_in(folder)
    (folder / "config.json").write_text("{}")
    assert exporting(deit_run, "--output", folder, "--format=safetensors", "--overwrite").code == 0
    assert left_in(folder) == before and left_in(tmp_path) == {"out"}, "other formats are kept"
    assert (folder / "config.json").read_text() != "{}", "and made anew"


def test_other_peoples_folders_are_never_overwritten(
    deit_run: Path, exporting: Command, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("mine")
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    done = exporting(deit_run, "--output", tmp_path / "thesis", "--overwrite")
    assert done.code == 2 and "chapter.tex" in done.err
    assert left_in(tmp_path / "thesis") == {"README.md", "chapter.tex"}


def test_an_exported_folder_can_be_exported_again(
    deit_folder: Path, exporting: Command, tmp_path: Path
) -> None:
    for source in (deit_folder, deit_folder / "model.safetensors"):
        folder = tmp_path / source.stem
        assert exporting(source, "--output", folder, "--format", "timm").code == 0
        first, second = ((f / "config.json").read_text() for f in (deit_folder, folder))
        assert first == second


def test_timm_makes_the_architectures_by_name(deit_run: Path) -> None:
    weights = deit_run / "student.safetensors"
    model = timm.create_model("srd_deit_tiny", num_classes=10, img_size=32, checkpoint_path=weights)
    student = create_student("tiny", 10, 32)
    student.load_state_dict(load_weights(weights))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), student.eval()(x))
    assert torch.equal(model.forward_head(model.forward_features(x)), student(x))
    for name, width in (("small", 384), ("base", 768)):
        with torch.device("meta"):
            assert timm.create_model(f"srd_deit_{name}").embed_dim == width


def test_a_student_can_be_finetuned_on_other_classes() -> None:
    model = timm.create_model("srd_deit_tiny", num_classes=10, img_size=32)
    x = torch.randn(2, 3, 32, 32)
    model.reset_classifier(4)
    assert model.eval()(x).shape == (2, 4) and model.num_classes == 4
    model.train()
    assert model(x).conv_logits.shape == (2, 4)
    model.reset_classifier(0)
    assert model.eval()(x).shape == (2, 192)
    assert timm.create_model("srd_deit_tiny", num_classes=0, img_size=32).eval()(x).shape == (
        2,
        192,
    )
    with pytest.raises(ValueError, match="multiple of 16"):
        timm.create_model("srd_deit_tiny", img_size=40)


def test_class_names_are_the_image_folders(
    tmp_path: Path, exporting: Command, predicting: Command, pictures: list[Path]
) -> None:
    for split in ("train", "val"):
        for name, picture in (("cat", pictures[0]), ("snow leopard", pictures[1])):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(5):
                read_image(picture).save(tmp_path / "data" / split / name / f"{number}.png")
    run = train(
        tmp_path, "--dataset=imagefolder", f"--data-path={tmp_path / 'data'}", "--batch-size=2"
    )
    assert exporting(run, "--output", tmp_path / "out", "--format", "timm").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == ["cat", "snow leopard"]
    assert "data:" in (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    done = predicting(tmp_path / "out", pictures[0], "--device=cpu")
    assert (
        "snow leopard" in done.out and done.out.count("%") == 2
    )  # both, though five are asked for


def test_a_timm_student_is_what_its_run_says(
    tmp_path: Path, exporting: Command, predicting: Command, pictures: list[Path]
) -> None:
    """A ResNet too, which by its weights alone would be taken for torchvision's."""
    run = train(tmp_path, "--model=resnet18", "--set=model.image_size=16")
    done = exporting(run, "--output", tmp_path / "out", "--format", "timm")
    assert done.code == 0 and done.out.startswith("resnet18, 10 classes: top-1 "), done.out
    assert left_in(tmp_path / "out") == {"README.md", "config.json", "model.safetensors"}
    images = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert images["input_size"] == [3, 16, 16] and images["mean"] == [0.4, 0.5, 0.6]
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    by_run = timm.create_model("resnet18", num_classes=10).eval()
    by_run.load_state_dict(load_weights(run / "student.safetensors"))
    assert torch.equal(plain(x), by_run(x))
    mine, theirs = (predicting(f, pictures[0], "--device=cpu").out for f in (run, tmp_path / "out"))
    assert mine == theirs != ""


def test_a_teacher_that_was_trained_here_is_plain_timm(tmp_path: Path, exporting: Command) -> None:
    run = _teacher(tmp_path)
    assert exporting(run, "--output", tmp_path / "out", "--format", "timm").code == 0
    assert left_in(tmp_path / "out") == {"README.md", "config.json", "model.safetensors"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    expected = load_weights(run / "student.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def _teacher(output: Path) -> Path:
    main.run(
        [
            "--train-teacher", "--teacher=test_byobnet", "--dataset=digits", f"--output={output}",
            "--name=teacher", "--device=cpu", "--batch-size=10", "--epochs=1",
            "--set=model.image_size=32", "--set=data.images_per_class=2", "--set=data.workers=0",
            "--set=augment.rand_augment=",
        ]
    )  # fmt: skip
    return output / "teacher"
