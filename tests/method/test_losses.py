"""What holds for every loss by name: those of the table, and those that will be added to it."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from srd.method.loss import Loss
from srd.method.losses import LOSSES, LossSettings, create_loss

BUILT = [name for name, loss in LOSSES.items() if loss.reads is not None]
NOT_BUILT = [name for name in LOSSES if name not in BUILT]
BATCH, D_S, D_T, TOKENS, CLASSES, SIDE, IMAGES = 6, 3, 4, 5, 7, 3, 20
# Of a setting: another value than its default. One for every setting of every loss.
OTHER = {"match": "elementwise", "alpha": 2.0, "bn_eps": 0.3, "log_eps": 0.2, "beta": 0.1,
         "norm_eps": 0.5, "normalisation": "l2", "distance": "l1", "projector": "frozen",
         "groups": 2, "hidden_layers": 2,
         "temperature": 3.0, "standardise": True, "gamma": 0.3, "weight": 0.1,
         "power": 3.0, "dim": 5, "negatives": 4, "momentum": 0.1}  # fmt: skip
LATER = {("crd", "momentum")}  # settings that change the next step, not this one
# Of a setting that is read beside another one only: that one, and a default that these widths allow.
BESIDE = {"groups": {"normalisation": "group", "groups": 4}, "hidden_layers": {"projector": "mlp"}}


# Of each loss, what its authors published: docs/settings.md#rivals says where.
PUBLISHED: dict[str, dict[str, Any]] = {
    "srd": {"match": "correlation", "alpha": 4.0, "bn_eps": None, "log_eps": None},
    "vkd": {"beta": 1.0, "norm_eps": 1e-5},
    "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "standardise": False},
    "dist": {"beta": 2.0, "gamma": 2.0, "temperature": 1.0},
    "kd_ls": {"temperature": 2.0, "weight": 9.0},
    "fitnet": {"weight": 100.0},
    "at": {"weight": 1000.0, "power": 2.0},
    "ickd": {"weight": 2.5},
    "crd": {"dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5, "weight": 0.8},
    "ablation": {"normalisation": "batch", "distance": "logsum", "projector": "linear", "alpha": None,
                 "groups": None, "hidden_layers": None, "norm_eps": 1e-4},
}  # fmt: skip


def settings(name: str, **values: Any) -> Any:
    return TypeAdapter(LossSettings).validate_python({"name": name, **values})


def made(name: str, **values: Any) -> Loss:
    """Built with the same parameters each time, in float64."""
    torch.manual_seed(0)
    loss = built(name, **values)
    assert loss is not None
    return loss.double()


def built(name: str, **values: Any) -> Loss | None:
    student_dim, teacher_dim = dims(name)
    return create_loss(settings(name, **values), student_dim=student_dim, teacher_dim=teacher_dim,
                       train_images=IMAGES)  # fmt: skip


def dims(name: str) -> tuple[int, int]:
    return (CLASSES, CLASSES) if LOSSES[name].reads == "logits" else (D_S, D_T)


def value_of(loss: Loss, z_s: Tensor, z_t: Tensor) -> Tensor:
    """The loss, of a batch whose targets and keys are what it may need besides."""
    given = {
        "targets": torch.arange(len(z_s)) % CLASSES,
        "keys": torch.stack([torch.full((len(z_s),), 2), torch.arange(len(z_s)) * 3], dim=1),
    }
    value: Tensor = loss(z_s, z_t, **{name: given[name] for name in loss.needs})
    return value


def pair(name: str, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """What the loss reads of a student and of a teacher."""
    shapes = {"features": [(D_S,), (D_T,)], "tokens": [(TOKENS, D_S), (TOKENS, D_T)],
              "maps": [(D_S, SIDE, SIDE), (D_T, SIDE, SIDE)],
              "logits": [(CLASSES,), (CLASSES,)]}  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    z_s, z_t = (
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
        for shape in shapes[LOSSES[name].reads or "features"]
    )
    return z_s, z_t


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_chosen_by_its_name_alone_or_with_its_settings(name: str) -> None:
    alone = TypeAdapter(LossSettings).validate_python(name)
    assert alone == settings(name) and type(alone) is LOSSES[name].settings
    with pytest.raises(ValidationError, match="nonsense"):
        settings(name, nonsense=1)


@pytest.mark.parametrize("name", BUILT)
def test_its_settings_are_the_published_ones(name: str) -> None:
    assert dataclasses.asdict(settings(name)) == {"name": name, **PUBLISHED[name]}


@pytest.mark.parametrize("name", BUILT)
def test_its_settings_are_its_keywords(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(LOSSES[name].settings)}
    assert fields.pop("name") == name
    keywords = inspect.signature(LOSSES[name]).parameters
    assert {key: keywords[key].default for key in fields} == fields


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, field.name)
        for name in BUILT
        for field in dataclasses.fields(LOSSES[name].settings)
        if field.name != "name"
    ],
)
def test_each_setting_changes_the_loss(name: str, key: str) -> None:
    z, beside, values = pair(name), BESIDE.get(key, {}), []
    if key == "projector":  # the same values, and it does not learn
        assert not any(p.requires_grad for p in made(name, projector=OTHER[key]).parameters())
        return
    for loss in (made(name, **beside), made(name, **beside | {key: OTHER[key]})):
        if (name, key) in LATER:
            value_of(loss, *z)
        values.append(value_of(loss, *z))
    assert not torch.allclose(*values)


@pytest.mark.parametrize("name", BUILT)
def test_gradients_reach_the_student_and_all_parameters_and_not_the_teacher(name: str) -> None:
    loss, (z_s, z_t) = made(name), pair(name)
    z_s.requires_grad_(), z_t.requires_grad_()
    value = value_of(loss, z_s, z_t)
    assert value.shape == () and value.isfinite()
    value.backward()
    assert z_t.grad is None
    for what, tensor in {"z_s": z_s, **dict(loss.named_parameters())}.items():
        assert tensor.grad is not None, what
        if tensor.ndim > 1:  # a normalisation may take back what a bias adds
            assert tensor.grad.abs().sum() > 0, what


@pytest.mark.parametrize("name", BUILT)
def test_autocast_and_half_precision_compute_in_float32(name: str) -> None:
    z_s, z_t = (z.bfloat16() for z in pair(name))
    loss = made(name).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = value_of(loss, z_s, z_t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, value_of(made(name).float(), z_s.float(), z_t.float()))


@pytest.mark.parametrize("name", BUILT)
def test_what_it_saves_is_all_that_it_knows(name: str) -> None:
    z = pair(name)
    loss = made(name)
    torch.manual_seed(5)
    other = built(name)
    assert other is not None
    other.double().load_state_dict(loss.state_dict())
    for _ in range(2):  # the second step sees what the first one left
        assert torch.equal(value_of(loss, *z), value_of(other, *z))


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("wrong", [(1, 0), (0, 1)])
def test_widths_that_are_not_its_own(name: str, wrong: tuple[int, int]) -> None:
    behind = (SIDE, SIDE) if LOSSES[name].reads == "maps" else ()
    (d_s, d_t), (more_s, more_t) = dims(name), wrong
    z_s, z_t = (torch.randn(BATCH, d, *behind) for d in (d_s + more_s, d_t + more_t))
    with pytest.raises(ValueError, match="must have shape"):
        value_of(made(name), z_s, z_t)
    z_s, z_t = torch.randn(BATCH, d_s, *behind), torch.randn(BATCH - 1, d_t, *behind)
    with pytest.raises(ValueError, match="one teacher representation"):
        value_of(made(name), z_s, z_t)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_loss_that_reads_nothing_has_no_module(name: str) -> None:
    assert built(name) is None
