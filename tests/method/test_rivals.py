"""The losses of others against float64 computations written from their papers, in NumPy alone.

Gradients by the complex step. Where torchdistill has the loss too, its value is compared as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from srd.method.crd import CRD
from srd.method.feature_losses import ICKD, AttentionTransfer, FitNet, correlation_distances
from srd.method.logit_losses import DIST, DKD, StandardisedKD
from srd.method.loss import Loss

B, C, D_S, D_T, SIDE, IMAGES = 5, 6, 3, 4, 3, 12
Arrays = dict[str, np.ndarray]
draw = np.random.RandomState(0)
LOGITS = {"z_s": draw.randn(B, C) * 3, "z_t": draw.randn(B, C) * 3}
LINEAR = {"projector.weight": draw.randn(D_T, D_S), "projector.bias": draw.randn(D_T)}
FEATURES = {"z_s": draw.randn(B, D_S) * 2 + 1, "z_t": draw.randn(B, D_T) - 2, **LINEAR}
MAPS = {"z_s": draw.randn(B, D_S, SIDE, SIDE), "z_t": draw.randn(B, D_T, SIDE, SIDE)}
TARGETS = np.array([0, 5, 2, 2, 1])
torchdistill = pytest.mark.skipif(not find_spec("torchdistill"), reason="needs torchdistill")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.real.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def z_scores(z: np.ndarray) -> np.ndarray:
    centred = z - z.mean(axis=1, keepdims=True)
    return centred / (1e-7 + np.sqrt((centred**2).sum(axis=1, keepdims=True) / (C - 1)))


def rows_of_length_1(z: np.ndarray) -> np.ndarray:
    return z / np.sqrt((z * z).sum(axis=-1, keepdims=True))


def dkd(a: Arrays, alpha: float, beta: float, T: float, standardise: bool, y: Any) -> Any:
    z_s, z_t = (z_scores(a[k]) if standardise else a[k] for k in ("z_s", "z_t"))
    p, q, total = softmax(z_s / T), softmax(z_t / T), 0
    for b, classes in enumerate(y):
        for c, share in classes.items():
            target = q[b, c] * np.log(q[b, c] / p[b, c])
            target = target + (1 - q[b, c]) * np.log((1 - q[b, c]) / (1 - p[b, c]))
            others = [i for i in range(C) if i != c]
            p_, q_ = p[b, others] / (1 - p[b, c]), q[b, others] / (1 - q[b, c])
            total += share * (alpha * target + beta * (q_ * np.log(q_ / p_)).sum())
    return total * T**2 / B


def pearson(a: np.ndarray, b: np.ndarray) -> Any:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def dist(a: Arrays, beta: float, gamma: float, T: float) -> Any:
    p, q = softmax(a["z_s"] / T), softmax(a["z_t"] / T)
    inter = 1 - np.mean([pearson(p[b], q[b]) for b in range(B)])
    intra = 1 - np.mean([pearson(p[:, c], q[:, c]) for c in range(C)])
    return T**2 * (beta * inter + gamma * intra)


def kd_ls(a: Arrays, T: float, weight: float) -> Any:
    p, q = softmax(z_scores(a["z_s"]) / T), softmax(z_scores(a["z_t"]) / T)
    return weight * T**2 * (q * np.log(q / p)).sum() / B


def fitnet(a: Arrays, weight: float) -> Any:
    difference = a["z_s"] @ a["projector.weight"].T + a["projector.bias"] - a["z_t"]
    return weight * (difference**2).mean()


def attention(a: Arrays, weight: float, power: float) -> Any:
    maps = []
    for z in (a["z_s"], a["z_t"]):
        size = np.where(z.real < 0, -z, z)
        maps.append(rows_of_length_1((size**power).mean(axis=1).reshape(B, -1)))
    return weight * ((maps[0] - maps[1]) ** 2).mean()


def ickd(a: Arrays, weight: float) -> Any:
    s = np.einsum("td,bdhw->bthw", a["projector.weight"], a["z_s"])
    s = (s + a["projector.bias"][:, None, None]).reshape(B, D_T, -1)
    t = a["z_t"].reshape(B, D_T, -1)
    g_s, g_t = (rows_of_length_1(np.einsum("bin,bjn->bij", f, f)) for f in (s, t))
    return weight * ((g_s - g_t) ** 2).sum() / (D_T * B)


def torch_of(a: Arrays, name: str) -> Tensor:
    return torch.from_numpy(a[name].copy())


def compare(
    loss: Loss, a: Arrays, expected: Callable[[Arrays], Any], within: float = 1e-10, **given: Tensor
) -> None:
    """Value, and the gradient of everything but the teacher's side."""
    loss.double()
    parameters = dict(loss.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch_of(a, name))
    z_s = torch_of(a, "z_s").requires_grad_()
    value = loss(z_s, torch_of(a, "z_t"), **given)
    value.backward()
    assert abs(value.item() - expected(a).real) < within * max(1.0, abs(value.item()))
    for name, tensor in {"z_s": z_s, **parameters}.items():
        gradient = np.zeros(a[name].shape)
        for index in np.ndindex(*a[name].shape):
            moved = a[name].astype(np.complex128)
            moved[index] += 1e-30j
            gradient[index] = expected({**a, name: moved}).imag / 1e-30
        assert tensor.grad is not None, name
        largest = max(1.0, np.abs(gradient).max())
        assert np.abs(tensor.grad.numpy() - gradient).max() < 1e-10 * largest, name


@pytest.mark.parametrize("setting", [(1.0, 8.0, 4.0, False), (0.3, 2.0, 1.0, False),
                                     (1.0, 8.0, 2.0, True)])  # fmt: skip
def test_dkd_of_classes(setting: tuple[float, float, float, bool]) -> None:
    y = [{c: 1.0} for c in TARGETS]
    targets = torch.from_numpy(TARGETS)
    compare(DKD(C, C, *setting), LOGITS, lambda a: dkd(a, *setting, y), targets=targets)


def test_dkd_of_mixed_and_smoothed_targets_is_a_weighted_choice_of_two_classes() -> None:
    smoothing, lam, classes = 0.1, 0.3, np.eye(C)
    one = classes[TARGETS] * (1 - smoothing) + smoothing / C
    other = classes[TARGETS[::-1]] * (1 - smoothing) + smoothing / C
    y: list[dict[int, float]] = [{} for _ in TARGETS]
    for b, (c, d) in enumerate(zip(TARGETS, TARGETS[::-1], strict=True)):
        y[b] = {c: 1.0} if c == d else {c: lam, d: 1 - lam}
    setting = (1.0, 8.0, 4.0, False)
    targets = torch.from_numpy(lam * one + (1 - lam) * other)
    compare(DKD(C, C, *setting), LOGITS, lambda a: dkd(a, *setting, y), targets=targets)
    smoothed = DKD(C, C)(*map(torch.from_numpy, LOGITS.values()), targets=torch.from_numpy(one))
    hard = DKD(C, C)(*map(torch.from_numpy, LOGITS.values()), targets=torch.from_numpy(TARGETS))
    torch.testing.assert_close(smoothed, hard, rtol=1e-12, atol=0)


def test_dkd_of_two_classes_and_of_targets_that_say_nothing() -> None:
    z = torch.randn(B, 2).double(), torch.randn(B, 2).double()
    half = DKD(2, 2)(*z, targets=torch.full((B, 2), 0.5).double())
    both = [DKD(2, 2)(*z, targets=torch.full((B,), c)) for c in (0, 1)]
    torch.testing.assert_close(half, (both[0] + both[1]) / 2)
    assert DKD(3, 3)(*[torch.randn(B, 3)] * 2, targets=torch.full((B, 3), 1 / 3)).isfinite()


def test_dkd_stays_finite_where_a_teacher_is_certain() -> None:
    z_s = torch.randn(B, C, requires_grad=True)
    certain = torch.zeros(B, C)
    certain[:, 2] = 300
    value = DKD(C, C, temperature=1.0)(z_s, certain, targets=torch.full((B,), 2))
    value.backward()
    assert value.isfinite() and z_s.grad is not None and z_s.grad.isfinite().all()


@pytest.mark.parametrize("setting", [(2.0, 2.0, 1.0), (1.0, 0.0, 4.0), (0.0, 3.0, 2.0)])
def test_dist(setting: tuple[float, float, float]) -> None:
    compare(DIST(C, C, *setting), LOGITS, lambda a: dist(a, *setting))


def test_dist_of_a_class_that_nobody_predicts_has_no_infinite_gradient() -> None:
    z_s = torch.randn(B, C)
    z_s[:, 1] = -1e4
    z_s.requires_grad_()
    value = DIST(C, C)(z_s, torch.randn(B, C))
    value.backward()
    assert value.isfinite() and z_s.grad is not None and z_s.grad.isfinite().all()


@pytest.mark.parametrize("setting", [(2.0, 9.0), (4.0, 0.5)])
def test_standardised_kd(setting: tuple[float, float]) -> None:
    compare(StandardisedKD(C, C, *setting), LOGITS, lambda a: kd_ls(a, *setting))


def test_standardised_kd_is_blind_to_scale_and_shift() -> None:
    z_s, z_t = (torch_of(LOGITS, name) for name in LOGITS)
    moved = StandardisedKD(C, C)(7 * z_s - 2, z_t)
    torch.testing.assert_close(moved, StandardisedKD(C, C)(z_s, z_t), rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight", [100.0, 0.5])
def test_fitnet(weight: float) -> None:
    compare(FitNet(D_S, D_T, weight), FEATURES, lambda a: fitnet(a, weight))


@pytest.mark.parametrize("setting", [(1000.0, 2.0), (1.0, 3.0)])
def test_attention_transfer(setting: tuple[float, float]) -> None:
    compare(AttentionTransfer(D_S, D_T, *setting), MAPS, lambda a: attention(a, *setting))


def test_attention_maps_of_two_sizes_are_averaged_to_the_smaller() -> None:
    z_s, z_t = (torch_of(MAPS, name) for name in MAPS)
    larger = z_s.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    larger = larger + torch.tensor([1.0, -1.0]).repeat(SIDE)[:, None]  # no mean, but a maximum
    loss = AttentionTransfer(D_S, D_T)
    torch.testing.assert_close(loss(larger, z_t), loss(z_s, z_t), rtol=1e-12, atol=0)
    turned = AttentionTransfer(D_T, D_S)
    torch.testing.assert_close(turned(z_t, larger), loss(z_s, z_t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", [2.5, 1.0])
def test_ickd(weight: float) -> None:
    compare(ICKD(D_S, D_T, weight), {**MAPS, **LINEAR}, lambda a: ickd(a, weight))


def test_a_channel_that_is_0_correlates_with_none() -> None:
    a, b = torch_of(MAPS, "z_s").flatten(2), torch_of(MAPS, "z_s").flatten(2) + 1
    a[:, 1] = 0
    a.requires_grad_()
    distances = correlation_distances(a, b)
    assert distances[:, 1].tolist() == [1.0] * B
    distances.sum().backward()
    assert a.grad is not None and a.grad.abs().max() < 10


# CRD: two steps, since the second sees what the first one left

DIM, K, SETTING = 4, 7, (0.3, 0.6, 0.8)  # temperature, momentum, weight
KEYS = torch.tensor([[3, 5], [3, 0], [3, 11], [3, 7], [3, 2]])
EMBEDDINGS = {
    "projector.weight": draw.randn(DIM, D_S), "projector.bias": draw.randn(DIM),
    "teacher_projector.weight": draw.randn(DIM, D_T), "teacher_projector.bias": draw.randn(DIM),
}  # fmt: skip


def crd(
    a: Arrays,
    banks: list[np.ndarray],
    others: np.ndarray,
    constants: list[float],
    remembers: bool = True,
) -> Any:
    """The loss; the first call sets `constants`, and `banks` (of the student, of the teacher) move."""
    T, momentum, weight = SETTING
    s, t = (
        rows_of_length_1(a[z] @ a[f"{p}.weight"].T + a[f"{p}.bias"])
        for z, p in (("z_s", "projector"), ("z_t", "teacher_projector"))
    )
    index, noise, total = KEYS[:, 1].numpy(), K / IMAGES, 0
    for side, (z, bank) in enumerate(((s, banks[1]), (t, banks[0]))):
        h = np.exp(np.einsum("bd,bkd->bk", z, bank[others]) / T)
        if len(constants) <= side:
            constants.append(h.real.mean() * IMAGES)
        h = h / constants[side]
        positive = np.log(h[:, 0] / (h[:, 0] + noise + 1e-7))
        negative = np.log(noise / (h[:, 1:] + noise + 1e-7)).sum(axis=1)
        total = total - (positive + negative).mean()
    if remembers:
        for bank, z in ((banks[0], s), (banks[1], t)):
            bank[index] = rows_of_length_1(momentum * bank[index] + (1 - momentum) * z)
    return weight * total


@pytest.mark.parametrize("few", [0, 16], ids=["many images", "few images"])
def test_crd_and_its_bank(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srd.method.crd.FEW", few)
    torch.manual_seed(0)
    loss = CRD(D_S, D_T, DIM, K, *SETTING, train_images=IMAGES).double()
    banks = [loss.bank_s.numpy().copy(), loss.bank_t.numpy().copy()]
    constants: list[float] = []
    a = {**FEATURES, **EMBEDDINGS}
    for step in range(2):
        a = {**a, "z_s": a["z_s"] + step, "z_t": a["z_t"] * (1 + step)}
        others, before = loss.compared_images(KEYS).numpy(), [bank.copy() for bank in banks]
        expected = partial(crd, banks=before, others=others, constants=constants, remembers=False)
        compare(loss, a, expected, keys=KEYS)
        loss.zero_grad()
        crd(a, banks, others, constants)
        assert np.abs(loss.bank_s.numpy() - banks[0]).max() < 1e-12
        assert np.abs(loss.bank_t.numpy() - banks[1]).max() < 1e-12
        assert loss.constants.tolist() == pytest.approx(constants, rel=1e-12)


def test_crd_draws_other_images_from_seed_epoch_and_index_alone() -> None:
    torch.manual_seed(0)
    loss = CRD(D_S, D_T, DIM, 500, train_images=IMAGES)
    drawn = loss.compared_images(KEYS)
    assert drawn[:, 0].tolist() == KEYS[:, 1].tolist()
    for (_, index), row in zip(KEYS.tolist(), drawn[:, 1:], strict=True):
        assert sorted(set(row.tolist())) == [i for i in range(IMAGES) if i != index]
    assert torch.equal(loss.compared_images(KEYS.flip(0)), drawn.flip(0))  # whoever has them
    later = loss.compared_images(KEYS + torch.tensor([1, 0]))
    assert not torch.equal(later, drawn)
    other = CRD(D_S, D_T, DIM, 500, train_images=IMAGES)  # torch's generator has moved on
    assert not torch.equal(other.compared_images(KEYS), drawn)


def test_crds_bank_begins_with_numbers_whose_squares_sum_to_1_in_the_mean() -> None:
    torch.manual_seed(0)
    loss = CRD(D_S, D_T, DIM, K, train_images=2000)
    for bank in (loss.bank_s, loss.bank_t):
        assert bank.abs().max().item() == pytest.approx((3 / DIM) ** 0.5, rel=2e-3)
        assert abs(bank.mean().item()) < 0.02


def test_crd_remembers_nothing_in_evaluation() -> None:
    loss = CRD(D_S, D_T, DIM, K, train_images=IMAGES).eval()
    before = loss.bank_s.clone()
    loss(torch.randn(B, D_S), torch.randn(B, D_T), keys=KEYS)
    assert torch.equal(loss.bank_s, before)
    with pytest.raises(ValueError, match="train_images must be at least 2"):
        CRD(D_S, D_T, train_images=1)


# torchdistill's own, where it has them


def io(z: Tensor) -> dict[str, Any]:
    return {"m": {"output": z}}


@torchdistill
def test_torchdistills_losses_agree() -> None:
    from torchdistill.losses.mid_level import ChSimLoss, DISTLoss, LogitStdKDLoss

    z_s, z_t = (torch_of(LOGITS, name) for name in LOGITS)
    paths = {"student_module_path": "m", "student_module_io": "output",
             "teacher_module_path": "m", "teacher_module_io": "output"}  # fmt: skip
    theirs = DISTLoss(**paths, beta=2.0, gamma=3.0, tau=4.0)(io(z_s), io(z_t))
    torch.testing.assert_close(DIST(C, C, 2.0, 3.0, 4.0)(z_s, z_t), theirs, rtol=1e-10, atol=0)
    theirs = LogitStdKDLoss(**paths, temperature=2.0, beta=1.0)(io(z_s), io(z_t))
    torch.testing.assert_close(StandardisedKD(C, C)(z_s, z_t), 36 * theirs, rtol=1e-10, atol=0)
    z_s, z_t = torch.randn(B, D_T, 3, 3).double(), torch.randn(B, D_T, 3, 3).double()
    own = ICKD(D_T, D_T, 1.0).double()
    with torch.no_grad():
        own.projector.weight.copy_(torch.eye(D_T))
        own.projector.bias.zero_()
    pairs = {"one": {who: {"io": "output", "path": "m"} for who in ("teacher", "student")}}
    theirs = B * ChSimLoss(pairs)(io(z_s), io(z_t))  # which divides by the batch twice
    torch.testing.assert_close(own(z_s, z_t), theirs, rtol=1e-10, atol=0)


@torchdistill
def test_torchdistills_attention_transfer_agrees() -> None:
    from torchdistill.losses.mid_level import ATLoss

    z_s, z_t = (torch_of(MAPS, name) for name in MAPS)
    pairs = {"one": {who: {"io": "output", "path": "m"} for who in ("teacher", "student")}}
    theirs = ATLoss(pairs, mode="code")(io(z_s), io(z_t))
    own = AttentionTransfer(D_S, D_T, 1.0)(z_s, z_t)
    torch.testing.assert_close(own, theirs, rtol=1e-10, atol=0)


@torchdistill
def test_torchdistills_crd_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdistill.losses.mid_level import CRDLoss

    # Its alias table asks for an attribute that it does not have; with negatives given, none is read.
    monkeypatch.setattr(CRDLoss, "init_prob_alias", lambda self, probs: None)
    theirs = CRDLoss("n", "e", "n", DIM, IMAGES, K, IMAGES, *SETTING[:2]).double()
    theirs.probs = torch.zeros(1)
    own = CRD(D_S, D_T, DIM, K, *SETTING, train_images=IMAGES).double()
    theirs.memory_v1.copy_(own.bank_s)
    theirs.memory_v2.copy_(own.bank_t)
    for _ in range(2):
        z_s, z_t = torch.randn(B, D_S).double(), torch.randn(B, D_T).double()
        s = torch.nn.functional.normalize(own.projector(z_s))
        t = torch.nn.functional.normalize(own.teacher_projector(z_t))
        images = {"pos_idx": KEYS[:, 1], "contrast_idx": own.compared_images(KEYS)}
        student = {"n": {"output": s}, "e": {"input": images}}
        expected = SETTING[2] * theirs(student, {"n": {"output": t}})
        value = own(z_s, z_t, keys=KEYS)
        torch.testing.assert_close(value, expected.squeeze(), rtol=1e-6, atol=0)  # its T is float32
