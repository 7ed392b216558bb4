"""The recipe's parts, each against a float64 computation in NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.errors import UserError
from srd.method.ablation import AblationLoss, AblationSettings
from srd.method.losses import create_loss
from srd.method.simple_recipe import SimpleRecipeLoss

BATCH, D_S, D_T, EPS = 6, 3, 4, 1e-3


def standard(x: np.ndarray, axis: int) -> np.ndarray:
    mean = x.mean(axis=axis, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=axis, keepdims=True) + EPS)


NORMALISED = {
    "none": lambda x: x,
    "l2": lambda x: x / np.sqrt((x**2).sum(axis=1, keepdims=True)),
    "layer": lambda x: standard(x, 1),
    "group": lambda x: np.concatenate([standard(x[:, :2], 1), standard(x[:, 2:], 1)], axis=1),
    "batch": lambda x: standard(x, 0),
}
DISTANCE = {
    "l1": lambda s, t: np.abs(s - t).mean(),
    "l2": lambda s, t: ((s - t) ** 2).mean(),
    "correlation": lambda s, t: (((s * t).mean(axis=0) - 1) ** 2).sum(),
    "logsum": lambda s, t: np.log((np.abs(s - t) ** 3).sum()),
}


def pair(d_s: int = D_S) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(BATCH, d_s, generator=draw).double() + 1,
        torch.randn(BATCH, D_T, generator=draw).double() * 2,
    )


def made(**settings: Any) -> AblationLoss:
    torch.manual_seed(0)
    return AblationLoss(D_S, D_T, **settings).double()


@pytest.mark.parametrize("distance", DISTANCE)
@pytest.mark.parametrize("normalisation", NORMALISED)
def test_it_is_what_the_equations_say(normalisation: str, distance: str) -> None:
    loss = made(normalisation=normalisation, distance=distance, norm_eps=EPS,
                alpha=3.0 if distance == "logsum" else None,
                groups=2 if normalisation == "group" else None)  # fmt: skip
    z_s, z_t = pair()
    weight, bias = (p.detach().numpy() for p in loss.projector.parameters())
    s = NORMALISED[normalisation](z_s.numpy() @ weight.T + bias)
    expected = DISTANCE[distance](s, NORMALISED[normalisation](z_t.numpy()))
    assert loss(z_s, z_t).item() == pytest.approx(expected, rel=1e-12)
    z_s.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, z_t), z_s)


def test_the_papers_parts_make_the_papers_loss_to_the_bit() -> None:
    torch.manual_seed(0)
    paper = SimpleRecipeLoss.resnet(D_S, D_T).double()
    ours = made()
    z_s, z_t = pair()
    assert torch.equal(ours(z_s, z_t), paper(z_s, z_t))
    for loss in (ours, paper):
        loss(z_s, z_t).backward()
    assert torch.equal(ours.embed.weight.grad, paper.embed.weight.grad)
    assert set(ours.state_dict()) == set(paper.state_dict())


def test_a_frozen_projector_is_the_linear_one_that_does_not_learn() -> None:
    frozen, linear = made(projector="frozen"), made()
    z_s, z_t = pair()
    z_s.requires_grad_()
    assert torch.equal(frozen(z_s, z_t), linear(z_s, z_t))
    frozen(z_s, z_t).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert z_s.grad.abs().sum() > 0


@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_an_mlp_has_so_many_hidden_layers(hidden: int) -> None:
    loss = made(projector="mlp", hidden_layers=hidden)
    weights = [layer for layer in loss.projector if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in weights] == [(D_T, D_S)] + [(D_T, D_T)] * hidden
    z = x = pair()[0]
    for layer in weights[:-1]:
        x = (x @ layer.weight.T + layer.bias).clamp_min(0)
    torch.testing.assert_close(loss.project(z), F.linear(x, weights[-1].weight, weights[-1].bias))


def test_an_orthonormal_projector_keeps_angles_and_stays_orthonormal() -> None:
    loss = made(projector="orthonormal")
    step = torch.optim.SGD(loss.parameters(), lr=0.5)
    for _ in range(3):
        step.zero_grad()
        loss(*pair()).backward()
        step.step()
    weight = loss.projector.weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(D_S).double())


def test_without_a_projector_the_widths_must_agree() -> None:
    loss = AblationLoss(D_T, D_T, projector="none")
    z_s, z_t = pair(D_T)
    assert loss.project(z_s) is z_s and list(loss.parameters()) == []
    assert loss(z_s, z_t).isfinite()
    with pytest.raises(UserError, match=r"distill\.loss ablation: no projector goes from 3 to 4"):
        create_loss(AblationSettings(projector="none"), student_dim=D_S, teacher_dim=D_T)


def test_what_is_not_given_is_what_the_docstring_says() -> None:
    z_s, z_t = pair()[0], torch.randn(BATCH, 16).double()
    for given in (
        {"normalisation": "group", "groups": 8},
        {"projector": "mlp", "hidden_layers": 1},
    ):
        losses = []
        for left_out in (False, True):
            torch.manual_seed(0)
            kept = dict(list(given.items())[:1]) if left_out else given
            losses.append(AblationLoss(D_S, 16, **kept).double()(z_s, z_t))
        assert torch.equal(*losses)


def test_equal_representations_are_no_infinity() -> None:
    z = pair(D_T)[0]
    assert AblationLoss(D_T, D_T, "none", projector="none")(z, z).isfinite()


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(UserError, match="4 channels do not divide into 3 groups"):
        create_loss(
            AblationSettings(normalisation="group", groups=3), student_dim=D_S, teacher_dim=D_T
        )


@pytest.mark.parametrize(
    "idle", [{"alpha": 2, "distance": "l1"}, {"groups": 2}, {"hidden_layers": 2}]
)
def test_a_setting_that_nothing_reads(idle: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"should have no {next(iter(idle))}, which only"):
        AblationSettings(**idle)
