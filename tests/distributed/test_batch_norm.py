"""Batch norms of the global batch: alone what they were, together what one process computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import Tensor, nn

from srd.distributed.batch_norm import (
    GlobalBatchNorm1d,
    GlobalBatchNorm2d,
    GlobalBatchNormAct2d,
    use_global_batch_norm,
)

Results = dict[str, dict[str, Tensor]]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"momentum": None, "eps": 0.1},
    {"momentum": 0.0},
    {"track_running_stats": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_alone_it_is_batch_norm(settings: dict[str, Any]) -> None:
    ours, torchs = GlobalBatchNorm2d(4, **settings), nn.BatchNorm2d(4, **settings)
    assert isinstance(ours, nn.BatchNorm2d)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for _ in range(2):
        x = torch.randn(3, 4, 5, 6) * 2 + 1
        torch.testing.assert_close(ours(x), torchs(x))
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    "kind, shape", [(BatchNormAct2d, (4, 5, 6)), (nn.BatchNorm1d, (4,)), (nn.BatchNorm1d, (4, 5))]
)
def test_alone_timms_and_that_of_vectors_are_the_same_bits(
    kind: type[nn.Module], shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    plain = nn.Sequential(kind(4, **settings))
    ours = use_global_batch_norm(copy.deepcopy(plain))
    assert type(ours[0]) is not kind and isinstance(ours[0], kind)
    for _ in range(2):
        x = torch.randn(3, *shape)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [network(image) for network, image in zip((ours, plain), inputs, strict=True)]
        for out in outputs:
            out.square().sum().backward()
        assert torch.equal(*outputs) and torch.equal(inputs[0].grad, inputs[1].grad)
    assert list(ours.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


def spread(shape: tuple[int, ...], memory: str) -> Tensor:
    """Values of `shape` in memory as the name says, far from zero."""
    x = torch.randn(shape, dtype=torch.float64) * 3 + 5
    if memory == "one value":
        return x.flatten()[0].expand(shape)
    return x.contiguous(memory_format=torch.channels_last) if memory == "channels last" else x


@pytest.mark.parametrize("shape", [(3, 3, 130, 131), (9, 5, 30, 31), (6, 7, 2, 2), (8, 5, 1, 1)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("memory", ["contiguous", "channels last"])
@pytest.mark.parametrize("of_gradient", ["contiguous", "channels last", "one value"])
@pytest.mark.parametrize("dtype, within", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_one_function_gives_what_its_formulas_give(
    shape: tuple[int, ...],
    affine: bool,
    memory: str,
    of_gradient: str,
    dtype: torch.dtype,
    within: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = GlobalBatchNorm2d(shape[1], affine=affine).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    images, grad = spread(shape, memory), spread(shape, of_gradient)
    grad = grad / images.numel()  # so that sums stay as small
    results = []
    for formulas in (False, True):  # the formulas always in double precision
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda formulas=formulas: formulas)
        kind = torch.float64 if formulas else dtype
        mine, x = copy.deepcopy(layer).to(kind), images.clone().to(kind).requires_grad_()
        out = mine(x)
        assert (type(out.grad_fn).__name__ == "CpuBatchNormBackward") is not formulas
        out.backward(grad.to(kind))
        grads = [p.grad for p in mine.parameters()]
        results.append([out.detach(), x.grad * images.numel(), *grads, *mine.buffers()])
    for ours, expected in zip(*results, strict=True):
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours.double(), expected.double(), rtol=0, atol=within * size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_half_precision_compute_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, 6)
    layer = GlobalBatchNorm2d(4)
    nn.init.normal_(layer.weight)
    exact = copy.deepcopy(layer).to(dtype).float()(x.to(dtype).float())
    ours = layer.to(dtype)(x.to(dtype))
    assert ours.dtype == dtype and torch.equal(ours, exact.to(dtype))
    ours.sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_images_without_height_are_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        GlobalBatchNorm2d(4)(torch.randn(3, 4))


def test_its_gradients_are_right() -> None:
    layer = GlobalBatchNorm2d(3, eps=0.1).double()
    nn.init.normal_(layer.weight)
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert type(layer(x).grad_fn).__name__ == "CpuBatchNormBackward"
    torch.autograd.gradcheck(layer, x)


def nested_network() -> nn.ModuleDict:
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1, momentum=0.3))
    return nn.ModuleDict(
        {
            "stem": block,
            "norm": nn.BatchNorm2d(4),
            "act": BatchNormAct2d(4, act_layer=nn.SiLU),
            "head": nn.BatchNorm1d(4),
        }
    )


def test_replaced_batch_norms_stay_what_they_hold() -> None:
    network = nested_network()
    network["norm"].eval()
    before = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert use_global_batch_norm(network) is network
    after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    kinds = [type(network["stem"][1]), *(type(network[key]) for key in ("norm", "act", "head"))]
    assert kinds == [GlobalBatchNorm2d, GlobalBatchNorm2d, GlobalBatchNormAct2d, GlobalBatchNorm1d]
    assert (network["stem"][1].eps, network["stem"][1].momentum) == (0.1, 0.3)
    assert isinstance(network["act"].act, nn.SiLU)
    assert network["stem"][1].training and not network["norm"].training
    use_global_batch_norm(network)
    assert type(network["norm"]) is GlobalBatchNorm2d


def test_replaced_batch_norms_compute_the_same() -> None:
    plain = nested_network()["stem"]
    ours = use_global_batch_norm(copy.deepcopy(plain))
    x = torch.randn(3, 3, 5, 6)
    torch.testing.assert_close(ours(x), plain(x))
    for mine, theirs in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_alone_any_other_layer_stays_as_it_is() -> None:
    network = nn.Sequential(EvoNorm2dB0(4), nn.BatchNorm3d(4))
    assert [type(layer) for layer in use_global_batch_norm(network)] == [
        EvoNorm2dB0,
        nn.BatchNorm3d,
    ]


def test_a_timm_student_keeps_its_names_and_its_answers() -> None:
    torch.manual_seed(0)
    model = timm.create_model("levit_128s", num_classes=3, img_size=64).eval()
    names, images = list(model.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        after = use_global_batch_norm(model)(images)
    assert list(model.state_dict()) == names and torch.equal(before, after)
    assert any(type(layer) is GlobalBatchNorm1d for layer in model.modules())
    assert not any(type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d) for layer in model.modules())


# Two processes


@pytest.mark.parametrize(
    "case",
    ["affine", "plain", "still", "no statistics", "with activation", "of vectors", "of sequences"],
)
def test_the_batch_norm_of_two_halves_is_that_of_the_batch(
    whole: Results, assert_equal: Callable[..., None], case: str
) -> None:
    assert whole[case]["inputs"].abs().max() > 1e-3
    assert_equal(case, within=1e-12)


@pytest.mark.parametrize("name", ["test_byobnet", "efficientvit_m0"])
def test_a_timm_student_of_two_halves_is_that_of_the_batch(
    whole: Results, assert_equal: Callable[..., None], name: str
) -> None:
    assert whole[name]["inputs"].abs().max() > 1e-3
    assert_equal(name, within=1e-12)


def test_a_layer_that_cannot_share_its_statistics_is_named(
    halves: tuple[Results, Results],
) -> None:
    for results in halves:
        assert "EvoNorm2dB0" in results["unknown"]
        assert "train.global_statistics=false" in results["unknown"]


def test_in_float32_two_halves_compute_the_same_bits(
    halves: tuple[Results, Results], whole: Results
) -> None:
    first, second = halves[0]["float32"], halves[1]["float32"]
    for name, expected in whole["float32"].items():
        together = torch.cat([first[name], second[name]]) if name == "out" else first[name]
        assert torch.equal(together, expected), name
