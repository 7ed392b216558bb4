"""The losses against float64 computations written from the paper's equations, in NumPy alone.

Gradients are checked by the complex step: f'(x) = Im f(x + ih) / h has no rounding error, and
needs nothing of automatic differentiation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from srd.method.logits import cross_entropy, distillation_kl
from srd.method.simple_recipe import BatchNormalize, SimpleRecipeLoss

MATCHES = ["correlation", "elementwise"]
BATCH, D_S, D_T = 6, 3, 4
Arrays = dict[str, np.ndarray]


def magnitude(x: np.ndarray) -> np.ndarray:
    """|x|, analytic in the imaginary part."""
    return np.where(x.real < 0, -x, x)


def normalised(x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=0)
    return centred / np.sqrt((centred * centred).mean(axis=0) + eps)


def expected_loss(
    a: Arrays, match: str, alpha: float, bn_eps: float, log_eps: float
) -> np.complex128:
    """Section 2 of the design: s = BN(P z_s), t = BN(z_t), then the distance of `match`."""
    s = normalised(a["z_s"] @ a["weight"].T + a["bias"], bn_eps)
    t = normalised(a["z_t"], bn_eps)
    distance = (s * t).mean(axis=0) - 1 if match == "correlation" else s - t
    return np.log((magnitude(distance) ** alpha).sum() + log_eps)


def complex_step(a: Arrays, name: str, *how: object) -> np.ndarray:
    """The gradient of `expected_loss` with respect to the array `name`."""
    step = 1e-30
    gradient = np.zeros(a[name].shape)
    for index in np.ndindex(*a[name].shape):
        moved = a[name].astype(np.complex128)
        moved[index] += 1j * step
        gradient[index] = expected_loss({**a, name: moved}, *how).imag / step
    return gradient


def random_arrays(seed: int = 0) -> Arrays:
    draw = np.random.RandomState(seed)
    return {
        "z_s": draw.randn(BATCH, D_S) * 3 + 1,
        "z_t": draw.randn(BATCH, D_T) * 0.5 - 2,
        "weight": draw.randn(D_T, D_S),
        "bias": draw.randn(D_T),
    }


def with_weights(loss: SimpleRecipeLoss, a: Arrays) -> SimpleRecipeLoss:
    loss = loss.double()
    with torch.no_grad():
        loss.projector.weight.copy_(torch.from_numpy(a["weight"]))
        loss.projector.bias.copy_(torch.from_numpy(a["bias"]))
    return loss


def random_pair(batch: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_s = torch.randn(batch, D_S, generator=generator, dtype=torch.float32)
    z_t = torch.randn(batch, D_T, generator=generator, dtype=torch.float32)
    return z_s.to(dtype), z_t.to(dtype)


def assert_agrees(loss: SimpleRecipeLoss, a: Arrays, *how: object) -> None:
    """Value and every gradient to 1e-10."""
    z_s = torch.from_numpy(a["z_s"]).requires_grad_()
    value = with_weights(loss, a)(z_s, torch.from_numpy(a["z_t"]))
    value.backward()
    assert abs(value.item() - expected_loss(a, *how).real) < 1e-10
    found = {"z_s": z_s, "weight": loss.projector.weight, "bias": loss.projector.bias}
    for name, tensor in found.items():
        assert tensor.grad is not None
        difference = np.abs(tensor.grad.numpy() - complex_step(a, name, *how)).max()
        assert difference < 1e-10, name


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5, 4.0])
@pytest.mark.parametrize("bn_eps, log_eps", [(0.0, 0.0), (0.0, 1e-5), (1e-4, 0.0), (0.3, 0.2)])
def test_value_and_every_gradient(match: str, alpha: float, bn_eps: float, log_eps: float) -> None:
    loss = SimpleRecipeLoss(D_S, D_T, match, alpha, bn_eps, log_eps)
    assert_agrees(loss, random_arrays(), match, alpha, bn_eps, log_eps)


def test_deit_is_the_released_deit_code() -> None:
    assert_agrees(SimpleRecipeLoss.deit(D_S, D_T), random_arrays(1), "correlation", 4.0, 0.0, 1e-5)


def test_resnet_is_the_released_resnet_code() -> None:
    assert_agrees(
        SimpleRecipeLoss.resnet(D_S, D_T), random_arrays(2), "elementwise", 4.0, 1e-4, 0.0
    )


def test_the_default_is_the_deit_loss() -> None:
    assert_agrees(SimpleRecipeLoss(D_S, D_T), random_arrays(3), "correlation", 4.0, 0.0, 1e-5)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), sign=st.sampled_from([-1.0, 1.0]))
def test_normalisation_ignores_scale_and_shift(scale: float, shift: float, sign: float) -> None:
    x = random_pair(dtype=torch.float64)[1]
    normalize = BatchNormalize(D_T, eps=0.0).double()
    moved = normalize(sign * scale * x + shift)
    torch.testing.assert_close(moved, sign * normalize(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("match", MATCHES)
def test_loss_ignores_scale_and_shift_of_either_side(match: str) -> None:
    loss = SimpleRecipeLoss(D_S, D_T, match, bn_eps=0.0).double()
    z_s, z_t = random_pair(dtype=torch.float64)
    plain = loss(z_s, z_t)
    torch.testing.assert_close(loss(z_s, 1e4 * z_t - 7), plain, rtol=0, atol=1e-8)
    with torch.no_grad():
        loss.projector.weight.mul_(1e3)
        loss.projector.bias.add_(5)
    torch.testing.assert_close(loss(z_s, z_t), plain, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.7, 3.3e4])
@pytest.mark.parametrize("batch", [2, 3, 7, 100])
def test_channel_of_zero_variance_becomes_zero(
    batch: int, constant: float, dtype: torch.dtype
) -> None:
    x = torch.randn(batch, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 1] = constant
    x.requires_grad_()
    normalize = BatchNormalize(3, eps=0.0).to(dtype)
    out = normalize(x)
    assert torch.equal(out[:, 1], torch.zeros(batch, dtype=dtype))
    (out * torch.randn(batch, 3).to(dtype)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert torch.equal(x.grad[:, 1], torch.zeros(batch, dtype=dtype))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_dead_channel_counts_as_uncorrelated(side: str) -> None:
    a = random_arrays()
    if side == "teacher":
        a["z_t"][:, 2] = 0.7
    else:
        a["weight"][2] = 0
    loss = with_weights(SimpleRecipeLoss.deit(D_S, D_T), a)
    z_s = torch.from_numpy(a["z_s"]).requires_grad_()
    value = loss(z_s, torch.from_numpy(a["z_t"]))
    value.backward()
    alive = {**a, "z_t": a["z_t"][:, [0, 1, 3]], "weight": a["weight"][[0, 1, 3]]}
    alive["bias"] = a["bias"][[0, 1, 3]]
    others = np.exp(expected_loss(alive, "correlation", 4.0, 0.0, 0.0).real)
    assert abs(value.item() - math.log(others + 1 + 1e-5)) < 1e-10
    for tensor in (z_s, loss.projector.weight, loss.projector.bias):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert torch.equal(loss.projector.weight.grad[2], torch.zeros(D_S).double())


@pytest.mark.parametrize("match", MATCHES)
def test_everything_constant_is_finite(match: str) -> None:
    loss = SimpleRecipeLoss(D_S, D_T, match, bn_eps=0.0)
    z_s = torch.full((5, D_S), 0.3, requires_grad=True)
    value = loss(z_s, torch.full((5, D_T), -2.0))
    value.backward()
    assert value.isfinite() and z_s.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("alpha", [1.0, 1.5, 4.0])
def test_identical_representations_are_finite(match: str, alpha: float) -> None:
    loss = SimpleRecipeLoss(D_T, D_T, match, alpha=alpha, log_eps=0.0)
    with torch.no_grad():
        loss.projector.weight.copy_(torch.eye(D_T))
        loss.projector.bias.zero_()
    z = random_pair()[1].requires_grad_()
    value = loss(z, z.detach().clone())
    value.backward()
    assert value.isfinite() and value < -3
    assert z.grad.isfinite().all() and loss.projector.weight.grad.isfinite().all()


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_numbers_are_not_hidden(match: str, bad: float, side: int) -> None:
    for factory in (SimpleRecipeLoss.deit, SimpleRecipeLoss.resnet):
        pair = random_pair()
        pair[side][2, 1] = bad
        assert factory(D_S, D_T)(*pair).isnan()
    pair = random_pair()
    pair[side][2, 1] = bad
    assert SimpleRecipeLoss(D_S, D_T, match, log_eps=0.0)(*pair).isnan()


@pytest.mark.parametrize("match", MATCHES)
def test_batch_of_one_is_an_error_in_training_only(match: str) -> None:
    loss = SimpleRecipeLoss(D_S, D_T, match)
    z_s, z_t = random_pair(batch=1)
    with pytest.raises(ValueError, match="at least 2"):
        loss(z_s, z_t)
    assert loss.bn_s.num_batches_tracked == 0
    assert loss.eval()(z_s, z_t).isfinite()


@pytest.mark.parametrize(
    "z_s, z_t, named",
    [
        ((4, D_S + 1), (4, D_T), [f"{D_S}", f"{D_S + 1}", "z_s"]),
        ((4, D_S), (4, D_T + 2), [f"{D_T}", f"{D_T + 2}", "z_t"]),
        ((4, D_S), (5, D_T), ["4", "5", "z_s", "z_t"]),
        ((4, D_S, 1), (4, D_T), ["z_s", str((4, D_S, 1))]),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    z_s: tuple[int, ...], z_t: tuple[int, ...], named: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        SimpleRecipeLoss(D_S, D_T)(torch.randn(z_s), torch.randn(z_t))
    assert all(word in str(caught.value) for word in named)


@pytest.mark.parametrize(
    "settings_out_of_range",
    [
        {"match": "cosine"},
        {"alpha": 0.5},
        {"bn_eps": -1e-9},
        {"log_eps": -1.0},
        {"alpha": math.nan},
        {"bn_eps": math.nan},
        {"log_eps": math.nan},
    ],
    ids=str,
)
def test_settings_out_of_range(settings_out_of_range: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        SimpleRecipeLoss(D_S, D_T, **settings_out_of_range)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_changes_nothing(match: str, dtype: torch.dtype) -> None:
    z_s, z_t = random_pair(dtype=dtype)
    results = []
    for inside in (False, True):
        torch.manual_seed(0)
        loss = SimpleRecipeLoss(D_S, D_T, match)
        z = z_s.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            value = loss(z, z_t) if inside else loss(z.float(), z_t.float())
        value.backward()
        assert value.dtype == torch.float32
        results.append((value, z.grad, *(p.grad for p in loss.parameters())))
    for outside, inside in zip(*results, strict=True):
        assert torch.equal(outside, inside)


def test_float64_inputs_are_computed_in_float64() -> None:
    z_s, z_t = random_pair(dtype=torch.float64)
    assert SimpleRecipeLoss(D_S, D_T)(z_s, z_t).dtype == torch.float64


def test_normalisation_is_batch_norm_1d() -> None:
    ours = BatchNormalize(D_T, eps=1e-4).double()
    torchs = nn.BatchNorm1d(D_T, eps=1e-4, affine=False).double()
    for batch in (2, 5, 9):
        x = torch.randn(batch, D_T, dtype=torch.float64) * 4 - 3
        probe = torch.randn(batch, D_T, dtype=torch.float64)
        x_ours, x_torchs = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = ours(x_ours), torchs(x_torchs)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
        (out * probe).sum().backward()
        (expected * probe).sum().backward()
        torch.testing.assert_close(x_ours.grad, x_torchs.grad, rtol=0, atol=1e-10)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=0, atol=1e-10)


def test_running_statistics_do_not_depend_on_eps() -> None:
    ours, torchs = BatchNormalize(D_T, eps=0.0).double(), nn.BatchNorm1d(D_T, affine=False).double()
    x = torch.randn(7, D_T, dtype=torch.float64)
    ours(x), torchs(x)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=0, atol=1e-12)


def test_evaluation_uses_and_keeps_the_running_statistics() -> None:
    loss = SimpleRecipeLoss.deit(D_S, D_T)
    loss(*random_pair())
    loss.eval()
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    z_s, z_t = random_pair(batch=3)
    alone = loss(z_s, z_t)
    projected = loss.projector(z_s).double()
    s = (projected - loss.bn_s.running_mean) / loss.bn_s.running_var.double().sqrt()
    t = (z_t.double() - loss.bn_t.running_mean) / loss.bn_t.running_var.double().sqrt()
    expected = torch.log((((s * t).mean(dim=0) - 1) ** 4).sum() + 1e-5)
    torch.testing.assert_close(alone.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], now) for name, now in loss.state_dict().items())


@pytest.mark.parametrize("match", MATCHES)
def test_the_teacher_gets_no_gradient_and_the_projector_does(match: str) -> None:
    z_s, z_t = random_pair()
    z_t.requires_grad_()
    loss = SimpleRecipeLoss(D_S, D_T, match)
    loss(z_s.requires_grad_(), z_t).backward()
    assert z_t.grad is None
    assert z_s.grad.abs().sum() > 0 and loss.projector.weight.grad.abs().sum() > 0


def test_released_state_dict_names() -> None:
    released = {"embed.weight": (D_T, D_S), "embed.bias": (D_T,)}
    for side in ("bn_s", "bn_t"):
        released |= {f"{side}.running_mean": (D_T,), f"{side}.running_var": (D_T,)}
        released[f"{side}.num_batches_tracked"] = ()
    loss = SimpleRecipeLoss.deit(D_S, D_T)
    assert {name: tuple(t.shape) for name, t in loss.state_dict().items()} == released
    assert loss.projector is loss.embed and isinstance(loss.projector, nn.Linear)
    assert {name for name, _ in loss.named_parameters()} == {"embed.weight", "embed.bias"}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_kl(temperature: float) -> None:
    draw = np.random.RandomState(0)
    student, teacher = draw.randn(5, 7) * 3, draw.randn(5, 7) * 3
    log_p, log_q = log_softmax(student / temperature), log_softmax(teacher / temperature)
    expected = (np.exp(log_q) * (log_q - log_p)).sum() / 5 * temperature**2
    logits = torch.from_numpy(student).requires_grad_()
    from_teacher = torch.from_numpy(teacher).requires_grad_()
    value = distillation_kl(logits, from_teacher, temperature)
    value.backward()
    assert abs(value.item() - expected) < 1e-10
    gradient = (np.exp(log_p) - np.exp(log_q)) * temperature / 5
    assert np.abs(logits.grad.numpy() - gradient).max() < 1e-10
    assert from_teacher.grad is None


def test_distillation_kl_survives_certain_teachers() -> None:
    teacher = torch.tensor([[0.0, 1e4, -1e4]])
    student = torch.tensor([[3.0, -1e3, 2.0]], requires_grad=True)
    value = distillation_kl(student, teacher)
    value.backward()
    torch.testing.assert_close(value, torch.tensor(1003.3132617))
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_classes(smoothing: float) -> None:
    draw = np.random.RandomState(1)
    logits, classes = draw.randn(6, 5), draw.randint(0, 5, 6)
    targets = np.eye(5)[classes] * (1 - smoothing) + smoothing / 5
    expected = -(targets * log_softmax(logits)).sum() / 6
    found = cross_entropy(torch.from_numpy(logits), torch.from_numpy(classes), smoothing)
    assert abs(found.item() - expected) < 1e-10


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_targets_is_not_smoothed_again(smoothing: float) -> None:
    draw = np.random.RandomState(2)
    logits, targets = draw.randn(6, 5), draw.dirichlet(np.ones(5), 6)
    expected = -(targets * log_softmax(logits)).sum() / 6
    found = cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets), smoothing)
    assert abs(found.item() - expected) < 1e-10


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_on_logits_leave_autocast(mixed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 6, 5, generator=draw).bfloat16()
    targets = teacher.softmax(dim=1) if mixed else torch.arange(6) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kl, ce = distillation_kl(logits, teacher), cross_entropy(logits, targets)
    assert kl.dtype == ce.dtype == torch.float32
    assert torch.equal(kl, distillation_kl(logits.float(), teacher.float()))
    exact = targets.float() if mixed else targets
    assert torch.equal(ce, cross_entropy(logits.float(), exact))
