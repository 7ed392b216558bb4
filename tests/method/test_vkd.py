"""VkD against a float64 computation written from its formula, in NumPy alone.

Gradients by the complex step, as in `tests/method/test_simple_recipe.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from srd.method.vkd import VkDLoss

BATCH = 5
NARROWER, WIDER = (3, 6), (6, 3)  # a student than its teacher: D_s, D_t
Arrays = dict[str, np.ndarray]


def projector(parameters: np.ndarray) -> np.ndarray:
    """Cayley's map: (1 - A/2)^-1 (1 + A/2) of the skew-symmetric A below whose diagonal they are."""
    tall = parameters if parameters.shape[0] >= parameters.shape[1] else parameters.T
    n, k = tall.shape
    below = np.zeros((n, n), tall.dtype)
    below[:, :k] = np.tril(tall)
    skew = below - below.T
    mapped = np.linalg.solve(np.eye(n) - skew / 2, np.eye(n) + skew / 2)[:, :k]
    return mapped if parameters.shape[0] >= parameters.shape[1] else mapped.T


def expected_loss(a: Arrays, beta: float, eps: float) -> np.complex128:
    centred = a["z_t"] - a["z_t"].mean(axis=1, keepdims=True)
    t = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)
    difference = a["z_s"] @ projector(a["parameters"]).T - t
    size = np.where(difference.real < 0, -difference, difference)
    if beta == 0:
        return size.mean()
    return np.where(size.real < beta, size * size / (2 * beta), size - beta / 2).mean()


def complex_step(a: Arrays, name: str, *how: float) -> np.ndarray:
    gradient = np.zeros(a[name].shape)
    for index in np.ndindex(*a[name].shape):
        moved = a[name].astype(np.complex128)
        moved[index] += 1e-30j
        gradient[index] = expected_loss({**a, name: moved}, *how).imag / 1e-30
    return gradient


def random_arrays(d_s: int, d_t: int) -> Arrays:
    draw = np.random.RandomState(0)
    return {
        "z_s": draw.randn(BATCH, d_s) * 2 + 1,
        "z_t": draw.randn(BATCH, d_t) * 0.5 - 2,
        "parameters": draw.randn(d_t, d_s),
    }


def parameters(loss: VkDLoss) -> Tensor:
    [own] = loss.parameters()
    return own


@pytest.mark.parametrize("dims", [NARROWER, WIDER, (4, 4)])
@pytest.mark.parametrize(("beta", "eps"), [(1.0, 1e-5), (0.3, 0.1), (0.0, 1e-5)])
def test_value_and_every_gradient(dims: tuple[int, int], beta: float, eps: float) -> None:
    a, loss = random_arrays(*dims), VkDLoss(*dims, beta=beta, norm_eps=eps).double()
    with torch.no_grad():
        parameters(loss).copy_(torch.from_numpy(a["parameters"]))
    z_s = torch.from_numpy(a["z_s"]).requires_grad_()
    value = loss(z_s, torch.from_numpy(a["z_t"]))
    value.backward()
    assert abs(value.item() - expected_loss(a, beta, eps).real) < 1e-10
    for name, tensor in {"z_s": z_s, "parameters": parameters(loss)}.items():
        assert tensor.grad is not None
        assert np.abs(tensor.grad.numpy() - complex_step(a, name, beta, eps)).max() < 1e-10, name


@pytest.mark.parametrize("dims", [NARROWER, WIDER])
def test_the_projector_stays_orthonormal_and_learns(dims: tuple[int, int]) -> None:
    """Decay and large steps included: there is no value of its parameters that is not."""
    torch.manual_seed(0)
    loss = VkDLoss(*dims).double()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.5, weight_decay=0.5)
    z_s, z_t = torch.randn(BATCH, dims[0]).double(), torch.randn(BATCH, dims[1]).double()
    first, before = loss(z_s, z_t).item(), loss.projector.weight.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        loss(z_s, z_t).backward()
        optimizer.step()
    weight = loss.projector.weight.detach()
    product = weight.T @ weight if dims == NARROWER else weight @ weight.T
    torch.testing.assert_close(product, torch.eye(min(dims)).double(), rtol=0, atol=1e-12)
    assert loss(z_s, z_t).item() < first and not torch.allclose(weight, before, atol=0.1)


def test_its_parameters_are_all_that_is_saved() -> None:
    torch.manual_seed(0)
    loss, other = VkDLoss(*NARROWER), VkDLoss(*NARROWER)
    assert not torch.equal(loss.projector.weight, other.projector.weight)
    assert [value.shape for value in loss.state_dict().values()] == [(6, 3)]
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss.projector.weight, other.projector.weight)


def test_the_teacher_gets_no_gradient() -> None:
    z_t = torch.randn(BATCH, 6, requires_grad=True)
    VkDLoss(*NARROWER)(torch.randn(BATCH, 3), z_t).backward()
    assert z_t.grad is None


@pytest.mark.parametrize(
    "settings", [{"beta": -1.0}, {"beta": float("nan")}, {"norm_eps": 0.0}, {"norm_eps": -1.0}]
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="beta must be at least 0, norm_eps above 0"):
        VkDLoss(*NARROWER, **settings)
