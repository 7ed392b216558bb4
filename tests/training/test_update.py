"""One update: backward, unscale, clip, check, step, in this order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from srd.errors import RunFailed
from srd.training.update import update

OFF = torch.amp.GradScaler("cpu", enabled=False)


def line(start: float = 1.0) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.tensor([start, 2 * start], dtype=torch.float64))
    return weight, torch.optim.SGD([weight], lr=0.5)


def stepped(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    clip_norm: float | None = None,
    scaler: torch.amp.GradScaler = OFF,
) -> tuple[dict[str, float], float]:
    logged = {"loss": loss.detach(), "ce": loss.detach() / 2}
    values, norm = update(
        loss,
        logged,
        optimizer=optimizer,
        scaler=scaler,
        clip_norm=clip_norm,
        where="epoch 2, step 31",
    )
    return values.wait(), norm.wait()["grad_norm"]


def test_a_step_follows_the_gradient() -> None:
    weight, optimizer = line()
    values, norm = stepped(optimizer, (torch.tensor([3.0, 4.0]).double() * weight).sum())
    assert values == {"loss": 11.0, "ce": 5.5} and norm == 5.0
    assert weight.tolist() == [1 - 0.5 * 3, 2 - 0.5 * 4]


def test_gradients_of_the_step_before_are_gone() -> None:
    weight, optimizer = line()
    weight.grad = torch.full_like(weight, 1e6)
    assert stepped(optimizer, weight.sum())[1] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("scale", [None, 2.0**12])
def test_gradients_are_clipped_after_they_are_unscaled(scale: float | None) -> None:
    weight, optimizer = line()
    scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
    loss = (torch.tensor([3.0, 4.0]).double() * weight).sum()
    _, norm = stepped(optimizer, loss, clip_norm=1.0, scaler=scaler)
    assert norm == pytest.approx(5.0)
    assert weight.tolist() == pytest.approx([1 - 0.5 * 0.6, 2 - 0.5 * 0.8], abs=1e-5)


def test_a_small_gradient_is_not_clipped() -> None:
    weight, optimizer = line()
    stepped(optimizer, weight.sum() * 0.1, clip_norm=15.0)
    assert weight.tolist() == pytest.approx([0.95, 1.95])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(bad: float) -> None:
    weight, optimizer = line()
    with pytest.raises(RunFailed, match=rf"loss is {bad}.*ce is {bad}.*epoch 2, step 31"):
        stepped(optimizer, weight.sum() * bad)
    assert weight.tolist() == [1, 2]


def test_only_the_bad_term_is_named() -> None:
    weight, optimizer = line()
    loss = weight.sum()
    logged = {"loss": loss.detach(), "kl": torch.tensor(math.nan), "ce": torch.tensor(1.0)}
    with pytest.raises(RunFailed) as caught:
        update(loss, logged, optimizer=optimizer, scaler=OFF, clip_norm=None, where="epoch 0")
    assert "kl is nan" in str(caught.value)
    assert "loss is" not in str(caught.value) and "ce is" not in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    weight, optimizer = line(0.0)
    with pytest.raises(RunFailed, match=r"grad_norm is (inf|nan).*step 31"):
        stepped(optimizer, weight.sqrt().sum(), clip_norm=1.0)
    assert weight.tolist() == [0, 0]


def test_the_way_back_may_be_given() -> None:
    weight, optimizer = line()

    def by_hand(loss: Tensor) -> None:
        weight.grad = torch.ones_like(weight) * loss.item()

    loss = torch.tensor(2.0)
    update(
        loss,
        {"loss": loss},
        optimizer=optimizer,
        scaler=OFF,
        clip_norm=None,
        where="",
        backward=by_hand,
    )
    assert weight.tolist() == [0, 1]
