"""Teachers: nothing of them moves, and their images are as they expect them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from srd.errors import UserError
from srd.files.hashes import verify
from srd.models.outputs import TeacherOutput
from srd.models.teacher import FrozenTeacher, Normalization

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.4, 0.2))


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def read(network: nn.Module, images: Tensor) -> TeacherOutput:
    maps = network(images)
    return TeacherOutput(maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3)))


def teacher_of(network: nn.Module, expected: Normalization = IMAGENET) -> FrozenTeacher:
    return FrozenTeacher(network, read, IMAGENET, expected)


def test_statistics_and_weights_never_move() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    teacher = teacher_of(network)
    task = nn.ModuleDict({"teacher": teacher, "student": nn.BatchNorm2d(3)})
    for mode in (task.train, teacher.train, teacher.eval, lambda: teacher.train(True)):
        mode()
        assert not any(module.training for module in teacher.modules())
        teacher(torch.randn(4, 3, 8, 8))
    assert task.train()["student"].training
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_a_teacher_gives_the_same_answer_twice() -> None:
    teacher = teacher_of(small_network()).train()
    images = torch.randn(4, 3, 8, 8)
    first, second = teacher(images), teacher(images)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.logits, second.logits)
    alone = teacher(images[:1])
    torch.testing.assert_close(alone.features, first.features[:1], rtol=0, atol=1e-6)


def test_nothing_in_a_teacher_is_trained() -> None:
    teacher = teacher_of(small_network())
    images = torch.randn(4, 3, 8, 8, requires_grad=True)
    out = teacher(images)
    assert not out.features.requires_grad and not out.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_images_are_converted_to_what_the_teacher_expects() -> None:
    def keep(_: nn.Module, images: Tensor) -> TeacherOutput:
        return TeacherOutput(images, images)

    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)

    def normalised(how: Normalization) -> Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in how)
        return (pixels - mean) / std

    teacher = FrozenTeacher(nn.Identity(), keep, IMAGENET, HALVES)
    seen = teacher(normalised(IMAGENET)).features
    torch.testing.assert_close(seen, normalised(HALVES), rtol=0, atol=1e-5)


def test_images_that_fit_are_left_alone() -> None:
    seen: list[Tensor] = []

    def keep(_: nn.Module, images: Tensor) -> TeacherOutput:
        seen.append(images)
        return TeacherOutput(images, images)

    images = torch.randn(2, 3, 4, 4)
    FrozenTeacher(nn.Identity(), keep, HALVES, HALVES)(images)
    assert seen[0].data_ptr() == images.data_ptr()


def test_a_file_is_what_its_name_claims(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    for name in (f"regnety-{digest[:8]}.pth", f"a-b_{digest[:4]}-{digest}.pth", "regnety.pth"):
        path = tmp_path / name
        path.write_bytes(b"weights")
        assert verify(path) == digest


def test_a_file_that_is_not_what_its_name_claims(tmp_path: Path) -> None:
    path = tmp_path / "regnety_160-a5fe301d.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(UserError) as caught:
        verify(path)
    assert all(part in str(caught.value) for part in (str(path), "a5fe301d", digest[:8]))


@pytest.mark.parametrize("name", ["resnet-best.pth", "run-2024.pth", "teacher-epoch0099.pth"])
def test_other_words_in_a_name_claim_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    verify(tmp_path / name)


def test_a_missing_teacher(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher weights at"):
        verify(tmp_path / "regnety_160-a5fe301d.pth")
