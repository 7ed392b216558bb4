"""configs/resnet18.yaml is the torchdistill half's recipe: the same loss and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models import resnet18, resnet34

from resnet.extension import SimpleRecipeCriterion, SimpleRecipeWrapper
from srd.config.layers import Layer, read_yaml
from srd.config.reading import read_config
from srd.device import Precision
from srd.method.losses import create_loss
from srd.models.outputs import Output
from srd.models.students import open_student
from srd.models.timm_models import read
from srd.training.task import DistillationTask

ROOT, CPU = Path(__file__).resolve().parents[2], torch.device("cpu")
BATCH, CLASSES, SIZE = 8, 10, 32


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=draw, dtype=torch.float64)
    return images, torch.arange(BATCH) % CLASSES


def by_torchdistill(
    student: torch.nn.Module, teacher: torch.nn.Module, wrapper: SimpleRecipeWrapper
) -> Tensor:
    """2 * repr + KL + CE, with torchdistill's hooks done by hand."""
    maps: dict[str, Tensor] = {}
    for role, network in (("student", student), ("teacher", teacher)):
        network.layer4.register_forward_hook(lambda *call, role=role: maps.update({role: call[2]}))
    images, targets = batch()
    logits, taught = student(images), teacher(images)
    io = {"model.layer4": {"output": maps["student"]}, ".": {"output": logits}}
    wrapper.secondary_forward(io)
    seen = {"layer4": {"output": maps["teacher"].detach()}, ".": {"output": taught.detach()}}
    criterion = SimpleRecipeCriterion("layer4")
    return criterion(io, seen) + torch.nn.functional.cross_entropy(logits, targets)


def test_the_same_loss_and_gradients_in_float64() -> None:
    torch.manual_seed(0)
    student, teacher = resnet18(num_classes=CLASSES).double(), resnet34(num_classes=CLASSES)
    teacher = teacher.double().eval()
    wrapper = SimpleRecipeWrapper("layer4", 512, 512, student_model=student, device=CPU).double()

    path = ROOT / "configs/resnet18.yaml"
    config = read_config([Layer(str(path), read_yaml(path))])
    ours = open_student(config.model.name, num_classes=CLASSES, image_size=SIZE)
    ours.model.load_state_dict(student.state_dict())
    their_teacher = timm.create_model(config.teacher.name.split(".")[0], num_classes=CLASSES)
    their_teacher.load_state_dict(teacher.state_dict())
    their_teacher.double().eval()
    loss = create_loss(config.distill.loss, student_dim=512, teacher_dim=512)
    assert loss is not None
    loss.load_state_dict(wrapper.distillation_loss.state_dict())

    def teach(images: Tensor) -> Output:
        with torch.no_grad():
            return read(their_teacher, images)

    task = DistillationTask(
        ours,
        loss,
        distill=config.distill,
        teach=teach,
        smoothing=config.augment.label_smoothing,
        precision=Precision(CPU, dtype=torch.float64),
    ).double()
    losses = task.losses(batch(), seed=0)
    losses["loss"].backward()
    total = by_torchdistill(student, teacher, wrapper)
    total.backward()
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    mine, theirs = dict(ours.model.named_parameters()), dict(student.named_parameters())
    assert set(mine) == set(theirs)
    for name, parameter in theirs.items():
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-8, atol=1e-12), name
    projector = wrapper.distillation_loss.projector.weight.grad
    assert projector.abs().max() > 0
    assert torch.allclose(loss.projector.weight.grad, projector, rtol=1e-8, atol=1e-12)
