"""A student of the ResNet half, handed on as a plain ResNet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from resnet.export import preprocessing, which_resnet
from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.files.checkpoint import save_weights
from tests.export.conftest import Command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def resnet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps on 30 digits, through torchdistill."""
    pytest.importorskip("torchdistill")
    from resnet.main import run
    from tests.resnet.recipes import CE, CRITERION, DATA, LOADERS, TEST

    folder = tmp_path_factory.mktemp("resnet")
    models = "\nmodels: {model: {key: resnet18, kwargs: {num_classes: 10}}}\n"
    train = (
        "\ntrain:" + LOADERS + "\n  model: {forward_proc: forward_batch_only}\n" + CRITERION + CE
    )
    (folder / "plain.yaml").write_text(DATA + models + train + TEST)
    arguments = [f"--config={folder / 'plain.yaml'}", f"--output={folder}", "--device=cpu"]
    run([*arguments, "--name=plain"])
    return folder / "plain"


def test_somebodys_run_whose_settings_unfold_without_end(
    exporting: Command, predicting: Command, pictures: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    weights = torchvision.models.resnet18(num_classes=10).state_dict()
    save_weights(run / "student.safetensors", weights, {})
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (run / "config.yaml").write_text("\n".join(["a0: &a0 [1, 2, 3]", *lines]))
    for done in (exporting(run, "--output", tmp_path / "out"), predicting(run, pictures[0])):
        assert done.code == 2 and "config.yaml, line 7: too much" in done.err, done.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def plain_weights(resnet_run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(resnet_run / "student.safetensors")


@pytest.mark.slow
def test_torchvisions_and_timms_plain_resnet18_load_it_strictly(
    resnet_run: Path, exporting: Command, predicting: Command, pictures: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    done = exporting(resnet_run, "--output", folder, "--format", "timm", "onnx", "torch")
    assert done.code == 0, done.err
    assert not list(folder.glob("*.py"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    vision = torchvision.models.resnet18(num_classes=10)
    vision.load_state_dict(weights, strict=True)
    by_timm = timm.create_model(
        "resnet18", num_classes=10, checkpoint_path=str(folder / "model.safetensors")
    )
    by_folder = timm.create_model(f"local-dir:{folder}", pretrained=True)
    # The recipe's own transforms: digits enlarged to 32 pixels, not normalised.
    transform = transforms.Compose([transforms.Resize(32), transforms.ToTensor()])
    square = tmp_path / "square.png"
    Image.open(pictures[0]).resize((9, 9)).save(square)
    images = transform(Image.open(square).convert("RGB"))[None]
    with torch.no_grad():
        expected = vision.eval()(images).softmax(dim=1)[0]
        for model in (by_timm, by_folder):
            torch.testing.assert_close(model.eval()(images).softmax(dim=1)[0], expected)
    for model in (
        folder,
        folder / "model.onnx",
        resnet_run,
        resnet_run / "checkpoints" / "best.pth",
    ):
        done = predicting(model, square, "--json", "--top=10", "--device=cpu")
        assert done.code == 0, done.err
        top = json.loads(done.out)["top"]
        assert sorted(guess["label"] for guess in top) == list("0123456789")
        for guess in top:
            assert guess["probability"] == pytest.approx(expected[guess["class"]].item(), abs=1e-4)


def test_the_card_has_the_result_of_the_test(
    resnet_run: Path, exporting: Command, tmp_path: Path
) -> None:
    result = json.loads((resnet_run / "result.json").read_text())
    assert exporting(resnet_run, "--output", tmp_path / "x", "--format", "timm").code == 0
    card = (tmp_path / "x" / "README.md").read_text()
    assert f"top-1 {result['acc1']:.2f} %, top-5 {result['acc5']:.2f} % on 20" in card
    assert "digits/train, 30 images" in card and "num_epochs: 2" in card


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchdistills_files_in_both_spellings(
    plain_weights: dict[str, torch.Tensor], exporting: Command, tmp_path: Path, wrapped: bool
) -> None:
    model: dict[str, Any] = dict(plain_weights)
    if wrapped:
        model = {f"model.{name}": value for name, value in model.items()}
        model |= {
            "linear.weight": torch.zeros(512, 512),
            "norm_layer.running_mean": torch.zeros(512),
        }
    file = tmp_path / "res3418.pt"
    torch.save({"model": model, "best_value": 71.0, "args": argparse.Namespace(seed=1)}, file)
    assert exporting(file, "--output", tmp_path / "out", "--format", "safetensors").code == 0
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(plain_weights)
    assert all(torch.equal(found[name], value) for name, value in plain_weights.items())


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_every_depth_is_told_from_its_shapes(name: str) -> None:
    with torch.device("meta"):
        weights = torchvision.models.get_model(name, num_classes=3).state_dict()
    assert which_resnet(weights, Path("x.pth")) == name
    del weights["layer4.1.conv1.weight"]
    with pytest.raises(UserError, match="is a ResNet, but none of"):
        which_resnet(weights, Path("x.pth"))


def step(name: str, *arguments: Any, **named: Any) -> dict[str, Any]:
    init = {"args": list(arguments), "kwargs": named}
    return {"!import_call": {"key": f"torchvision.transforms.{name}", "init": init}}


NORMALIZE = step("Normalize", mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])


@pytest.mark.parametrize(
    ("size", "resize"), [(224, 256), (224, 235), (32, 32), (224, 232), (288, 323)]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_recipes_transforms_become_the_same_pixels(
    size: int, resize: int, interpolation: str
) -> None:
    data = {"transform": step("Compose", [
        step("Resize", size=resize, interpolation={"bilinear": 2, "bicubic": 3}[interpolation]),
        step("CenterCrop", size), step("ToTensor"), NORMALIZE,
    ])}  # fmt: skip
    found = preprocessing(data, Path("run"))
    theirs = transforms.Compose([
        transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(size), transforms.ToTensor(),
        transforms.Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.1]),
    ])  # fmt: skip
    image = Image.effect_noise((411, 350), 90).convert("RGB")
    assert torch.equal(found.transform()(image), theirs(image))


def test_the_papers_recipe_is_torchvisions_evaluation() -> None:
    pytest.importorskip("torchdistill")
    from resnet.recipe import read_settings

    settings = read_settings(ROOT / "configs" / "res3418.yaml")
    data = settings["datasets"]["imagenet/val"]
    assert preprocessing(data, Path("run")) == Preprocessing(
        224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, "bilinear"
    )


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([step("Grayscale"), step("ToTensor")], "Grayscale"),
        ([step("ToTensor")], "not resized"),
        ([step("Resize", [32, 40])], "not resized"),
        ([step("Resize", 32), step("CenterCrop", 64)], "not resized"),
        ([step("Resize", 32, "!import_get lanczos")], "lanczos"),
    ],
)
def test_transforms_that_cannot_be_handed_on_are_errors(steps: list[Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        preprocessing({"transform": step("Compose", steps)}, Path("run"))
