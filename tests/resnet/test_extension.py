"""Our wrapper and criterion against torchdistill's own, and their complaints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchdistill.losses.mid_level import SRDLoss
from torchdistill.models.wrapper import SRDModelWrapper

from resnet.extension import SimpleRecipeCriterion, SimpleRecipeWrapper
from srd.errors import UserError
from srd.method.logits import distillation_kl
from srd.method.loss import Loss
from srd.method.losses import LOSSES, KDSettings
from srd.method.vkd import VkDLoss

CPU = torch.device("cpu")


class Net(nn.Module):
    """A feature map and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer4 = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.layer4(x)
        return self.fc(self.features.mean((2, 3)))


def ours(student: nn.Module, teacher: nn.Module, x: Tensor, wrapper: SimpleRecipeWrapper) -> Tensor:
    logits, t_logits = student(x), teacher(x)
    io = {"model.layer4": {"output": student.features}, ".": {"output": logits}}
    wrapper.secondary_forward(io)
    t_io = {"layer4": {"output": teacher.features}, ".": {"output": t_logits}}
    return SimpleRecipeCriterion("layer4")(io, t_io)


def theirs(student: nn.Module, teacher: nn.Module, x: Tensor, linear: nn.Linear) -> Tensor:
    norm = {"num_features": 9, "eps": 1e-4, "affine": False}
    hook = {"path": "layer4", "io": "output"}
    s_wrap = SRDModelWrapper(
        hook, norm, CPU, None, False, {"in_features": 7, "out_features": 9}, student_model=student
    ).double()
    t_wrap = SRDModelWrapper(hook, norm, CPU, None, False, teacher_model=teacher).double()
    s_wrap.linear.load_state_dict(linear.state_dict())
    seen: dict[str, Tensor] = {}
    s_wrap.norm_layer.register_forward_hook(lambda m, i, o: seen.__setitem__("s", o))
    t_wrap.norm_layer.register_forward_hook(lambda m, i, o: seen.__setitem__("t", o))
    logits, t_logits = s_wrap(x), t_wrap(x)
    s_wrap.secondary_forward({"layer4": {"output": student.features}})
    t_wrap.secondary_forward({"layer4": {"output": teacher.features}})
    loss = SRDLoss("n", "output", "n", "output", ".", "output", ".", "output", exponent=4.0)
    value = loss(
        {"n": {"output": seen["s"]}, ".": {"output": logits}},
        {"n": {"output": seen["t"].detach()}, ".": {"output": t_logits.detach()}},
    )
    value.backward()
    linear.weight.grad, linear.bias.grad = s_wrap.linear.weight.grad, s_wrap.linear.bias.grad
    return value


def test_loss_and_gradients_equal_torchdistills() -> None:
    torch.manual_seed(0)
    student, teacher, x = Net(7).double(), Net(9).double(), torch.randn(6, 3, 8, 8).double()
    wrapper = SimpleRecipeWrapper("layer4", 7, 9, student_model=student, device=CPU).double()
    linear = nn.Linear(7, 9).double()
    linear.load_state_dict(wrapper.distillation_loss.projector.state_dict())
    expected = theirs(student, teacher, x, linear)
    expected_grad = student.layer4.weight.grad.clone()
    student.zero_grad()
    value = ours(student, teacher, x, wrapper)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(student.layer4.weight.grad, expected_grad, rtol=1e-8, atol=1e-12)
    projector = wrapper.distillation_loss.projector
    torch.testing.assert_close(projector.weight.grad, linear.weight.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"student_dim": 8}, {"teacher_dim": 4}])
def test_widths_that_do_not_fit_name_both(wrong: dict[str, int]) -> None:
    student, teacher = Net(7), Net(9)
    sizes = {"student_dim": 7, "teacher_dim": 9, **wrong}
    wrapper = SimpleRecipeWrapper("layer4", **sizes, student_model=student, device=CPU)
    with pytest.raises(UserError, match=r"wide, the projector's \w+_dim \d"):
        ours(student, teacher, torch.randn(4, 3, 8, 8), wrapper)


def test_a_layer_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'layer4'"):
        SimpleRecipeWrapper("layer5", 7, 9, student_model=Net(7), device=CPU)


def wrapped(**settings: object) -> SimpleRecipeWrapper:
    student, device = Net(7).double(), CPU
    return SimpleRecipeWrapper("layer4", 7, 9, student_model=student, device=device, **settings)


def test_unknown_fields_are_errors() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SimpleRecipeCriterion("layer4", temprature=2.0)
    with pytest.raises(UserError, match=r"unknown key 'loss\.temprature'"):
        wrapped(temprature=2.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"loss": "vdk"}, "did you mean 'vkd'"),
        (
            {"loss": {"name": "vkd", "alpha": 4.0}},
            r"unknown key 'loss\.alpha' in SimpleRecipeWrapper",
        ),
        ({"loss": {"name": "vkd", "beta": -1}}, "loss.beta in SimpleRecipeWrapper"),
        ({"loss": "srd", "alpha": 2.0}, "alpha beside `loss`"),
        ({"loss": "kd"}, "compares no representations"),
        ({"loss": 5}, "name of a loss"),
    ],
)
def test_a_loss_that_there_is_not_or_that_has_no_such_setting(
    settings: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        wrapped(**settings)


def test_any_loss_by_name_is_the_other_halfs() -> None:
    """The terms, their sum and the projector's gradient: VkD with a setting of its own."""
    torch.manual_seed(0)
    wrapper = wrapped(loss={"name": "vkd", "beta": 0.5}).double()
    teacher, x = Net(9).double(), torch.randn(6, 3, 8, 8).double()
    total = ours(wrapper.model, teacher, x, wrapper)
    total.backward()
    same = VkDLoss(7, 9, beta=0.5).double()
    same.load_state_dict(wrapper.distillation_loss.state_dict())
    z_s, z_t = (net.features.detach().mean((2, 3)) for net in (wrapper.model, teacher))
    kl = distillation_kl(wrapper.model(x), teacher(x))
    loss = 2 * same(z_s, z_t)
    loss.backward()
    torch.testing.assert_close(total, loss + kl, rtol=1e-12, atol=0)
    for own, other in zip(wrapper.distillation_loss.parameters(), same.parameters(), strict=True):
        assert own.grad is not None and own.grad.abs().sum() > 0
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-14)


NEEDY = [("dkd", {}), ("dist", {}), ("kd_ls", {}), ("fitnet", {}), ("at", {}), ("ickd", {}),
         ("crd", {"train_images": 10})]  # fmt: skip


@pytest.mark.parametrize(("name", "given"), NEEDY)
def test_every_rival_by_name_gets_what_it_needs(name: str, given: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer, sizes = ("fc", (5, 5)) if LOSSES[name].reads == "logits" else ("layer4", (7, 9))
    student, teacher, x = Net(7).double(), Net(9).double(), torch.randn(6, 3, 8, 8).double()
    wrapper = SimpleRecipeWrapper(
        layer, *sizes, loss=name, student_model=student, device=CPU, **given
    ).double()
    wrapper.keys = torch.tensor([[0, i] for i in range(6)])
    targets = torch.arange(6) % 5
    logits, t_logits = student(x), teacher(x)
    io = {"model.fc": {"output": logits}, "model.layer4": {"output": student.features},
          ".": {"output": logits}}  # fmt: skip
    t_io = {"fc": {"output": t_logits}, "layer4": {"output": teacher.features},
            ".": {"output": t_logits}}  # fmt: skip
    wrapper.secondary_forward(io)
    criterion = SimpleRecipeCriterion(layer)
    total = criterion(io, t_io, targets)
    total.backward()
    assert set(criterion.terms) == {"repr", *(["kl"] if LOSSES[name].logits else [])}
    assert total.isfinite() and student.layer4.weight.grad.abs().sum() > 0


def test_attention_of_one_position_is_refused() -> None:
    wrapper = wrapped(loss="at")
    with pytest.raises(UserError, match=r"the student's model\.layer4 has only 1: take larger"):
        wrapper.secondary_forward({"model.layer4": {"output": torch.zeros(2, 7, 1, 1)}})


def test_a_number_of_images_is_for_who_counts_them() -> None:
    with pytest.raises(UserError, match="'crd' needs `train_images`"):
        wrapped(loss="crd")
    with pytest.raises(UserError, match="leave train_images out"):
        wrapped(loss="vkd", train_images=5)


class PositionByPosition(Loss):
    """The squares of the differences; in the place of the KL."""

    reads, logits, settings = "tokens", False, KDSettings

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projector = nn.Linear(student_dim, teacher_dim, bias=False)

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return (self.projector(z_s) - z_t).square().mean()


def test_a_loss_of_tokens_reads_each_position_and_may_stand_alone() -> None:
    torch.manual_seed(0)
    wrapper = wrapped(loss="vkd")
    wrapper.distillation_loss = PositionByPosition(7, 9).double()
    teacher, x = Net(9).double(), torch.randn(6, 3, 8, 8).double()
    total = ours(wrapper.model, teacher, x, wrapper)
    weight = wrapper.distillation_loss.projector.weight
    projected = torch.einsum("td,bdhw->bthw", weight, wrapper.model.features)
    expected = 2 * (projected - teacher.features).square().mean()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
