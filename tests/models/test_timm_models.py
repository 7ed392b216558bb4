"""Teachers: frozen for good, read correctly, refused when they are not what they claim."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from srd.config.fields import Teacher
from srd.errors import UserError
from srd.models.teacher import Normalization, feature_width, load_teacher
from srd.models.timm_models import read_timm

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def load(file: Path, classes: int = 10, **settings: object):
    config = Teacher(name="regnety_002", checkpoint=str(file), **settings)  # type: ignore[arg-type]
    return load_teacher(config, classes, 32, HALF)


def test_a_teacher_is_frozen_and_cannot_be_put_into_training_mode(teacher_file: Path) -> None:
    teacher = load(teacher_file).model
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    out = teacher(torch.randn(4, 3, 32, 32))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not out.features.requires_grad
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_images_are_normalised_as_the_teacher_expects(teacher_file: Path) -> None:
    teacher = load(teacher_file, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).model
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    wanted = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = teacher.model(wanted)
    torch.testing.assert_close(teacher((pixels - 0.5) / 0.5).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("regnety_002", 64),
        ("resnet18", 64),
        ("vit_tiny_patch16_224", 224),
        ("swin_tiny_patch4_window7_224", 224),
    ],
)
def test_features_are_one_vector_an_image_for_any_layout(name: str, size: int) -> None:
    model = timm.create_model(name, num_classes=4).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out = read_timm(model, images)
        torch.testing.assert_close(out.logits, model(images), rtol=1e-4, atol=1e-5)
        if name == "regnety_002":
            torch.testing.assert_close(out.features, model.forward_features(images).mean((2, 3)))
    assert out.features.shape == (2, model.num_features)


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("test_byobnet", lambda found: found.flatten(2).mean(2)),  # (B, D, H, W)
        ("mambaout_femto", lambda found: found.flatten(1, 2).mean(1)),  # (B, H, W, D)
        ("test_vit", lambda found: found[:, 0]),  # (B, N, D): its head reads the class token
    ],
)
def test_features_are_the_average_over_positions_or_the_class_token(
    name: str, pooled: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    """For images of 64 pixels, also where a model is built for one size."""
    torch.manual_seed(0)
    size = {"img_size": 64} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=3, **size).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    config = Teacher(
        name=name, checkpoint=str(tmp_path / "weights.pth"), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    teacher = load_teacher(config, 3, 64, HALF).model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = teacher(images)
        torch.testing.assert_close(found.logits, model(images))
        torch.testing.assert_close(found.features, pooled(model.forward_features(images)))
    assert feature_width(teacher, 64) == model.num_features == found.features.shape[1]


def test_the_papers_teacher_is_3024_wide() -> None:
    assert timm.create_model("regnety_160").num_features == 3024


def test_width_and_hash_are_reported(teacher_file: Path) -> None:
    loaded = load(teacher_file)
    assert feature_width(loaded.model, 32) == timm.create_model("regnety_002").num_features
    assert loaded.sha256 == hashlib.sha256(teacher_file.read_bytes()).hexdigest()


def test_a_file_that_is_not_what_its_name_claims_is_refused(
    tmp_path: Path, teacher_file: Path
) -> None:
    digest = hashlib.sha256(teacher_file.read_bytes()).hexdigest()
    right, wrong = tmp_path / f"teacher-{digest[:8]}.pth", tmp_path / "teacher-0123abcd.pth"
    right.write_bytes(teacher_file.read_bytes())
    wrong.write_bytes(teacher_file.read_bytes())
    load(right)
    with pytest.raises(UserError, match="0123abcd"):
        load(wrong)


def test_other_classes_and_unknown_models_are_refused(teacher_file: Path) -> None:
    with pytest.raises(UserError, match=r"head\.fc\.weight .* instead of"):
        load(teacher_file, classes=7)
    with pytest.raises(UserError, match="did you mean"):
        load_teacher(Teacher(name="regnetyy_002"), 10, 32, HALF)


def test_no_file_and_no_network_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("srd.models.teacher.in_ckpts", lambda *names: None)
    with pytest.raises(UserError, match=r"put regnety_160-a5fe301d\.pth into ckpts/"):
        load_teacher(Teacher(), 1000, 224, HALF)
