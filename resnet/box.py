"""torchdistill's boxes: built from a checked recipe, and made to behave.

What torchdistill lacks is added around it: weights are read as data, the frozen teacher stays in
evaluation mode, loss terms have names, batches follow (seed, epoch), and what a step changes can be
saved and put back.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchdistill.common.module_util import get_module
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box

from resnet.explain import box_explained
from resnet.models import Models
from resnet.recipe import Recipe
from resnet.sections import stages
from srd.data.views import INIT, seeded
from srd.device import in_bfloat16
from srd.errors import UserError, nearest
from srd.method.loss import Loss
from srd.models.frozen import round_weights


def make_box(
    recipe: Recipe,
    models: Models,
    device: torch.device,
    lr_factor: int,
    datasets: dict[str, Any] | None = None,
) -> Any:
    """torchdistill's box for the recipe's `train` section, its terms recorded, its teacher frozen.

    Of several stages it is at the first.

    Args:
        datasets: in the place of the recipe's.

    Raises:
        UserError: an unknown registry key, a module path that does not exist, or settings that
            the box refuses.
    """
    train = deepcopy(recipe.config["train"])  # torchdistill multiplies learning rates in place
    for section in stages(train):
        _check_stage(section, models)
    arguments = (datasets or recipe.config["datasets"], train, device, None, False, lr_factor)
    with box_explained(recipe.config["train"]):
        if models.teacher is None:
            box: Any = get_training_box(models.student, *arguments)
        else:
            box = get_distillation_box(models.teacher, models.student, *arguments)
    if recipe.run.teacher_bf16:
        _teach_in_bfloat16(box)
    return _ready(box)


def advance(box: Any, stage: int, seed: int) -> None:
    """Set the box up for the next stage: the networks' weights go on, the rest is as the stage says.

    What is drawn follows (seed, stage), so that a run that goes on here builds the same modules.

    Args:
        stage: its number, 1 for the second.

    Raises:
        UserError: as `make_box`.
    """
    with box_explained(box.train_config), seeded(INIT, seed, stage):
        box.advance_to_next_stage()
    _ready(box)


def _check_stage(section: dict[str, Any], models: Models) -> None:
    for role, model in (("teacher", models.teacher), ("student", models.student)):
        own = section.get(role) or (section.get("model") if role == "student" else None) or {}
        _check_paths(own, model, role)
        for key in ("src_ckpt", "dst_ckpt"):
            if own.get(key):
                raise UserError(
                    f"train.{role}.{key}: put it under models, where it is read as data"
                )
    if section.get("optimizer", {}).get("grad_accum_step", 1) != 1:
        raise UserError(
            "train.optimizer.grad_accum_step: not supported; set the effective batch size"
        )
    for key in ("pre_forward_process", "post_forward_process"):
        if key in section:
            raise UserError(f"train.{key}: not supported; the update is this project's own")


def compute_in_bfloat16(teacher: nn.Module | None, amp: str) -> None:
    """Let a frozen teacher compute in bfloat16; what it says is of the images' type nevertheless.

    Raises:
        UserError: there is none, or it does not go with `run.amp`.
    """
    if teacher is None:
        raise UserError("run.teacher_bf16 has no effect without a teacher: leave it out")
    if amp in ("bf16", "fp64"):
        raise UserError(
            f"run.teacher_bf16 does not go with run.amp {amp}: leave one of the two out"
        )
    round_weights(teacher, torch.bfloat16)
    forward = teacher.forward

    def rounded(images: Tensor, *more: Any, **named: Any) -> Any:
        with in_bfloat16(images.device):
            return _unrounded(forward(images, *more, **named), images.dtype)

    teacher.forward = rounded


def _teach_in_bfloat16(box: Any) -> None:
    """The same for a box, whose teacher may be a part of the network, and whose hooks see inside."""
    ask = box.get_teacher_output

    def unrounded(sample_batch: Tensor, *more: Any, **named: Any) -> Any:
        if box.teacher_updatable:
            raise UserError("run.teacher_bf16: this teacher is trained: set requires_grad: false")
        with in_bfloat16(sample_batch.device):
            return _unrounded(ask(sample_batch, *more, **named), sample_batch.dtype)

    box.get_teacher_output = unrounded


def _unrounded(seen: Any, dtype: torch.dtype) -> Any:
    """`seen` with its tensors of bfloat16 in another type."""

    def convert(value: Tensor) -> Tensor:
        return value.to(dtype) if value.dtype == torch.bfloat16 else value

    return tree_map_only(Tensor, convert, seen)


def _ready(box: Any) -> Any:
    """The box with its terms recorded; stages are advanced here, not by it."""
    if box.optimizer is None:
        raise UserError("train: needs an optimizer")
    terms = getattr(box.criterion, "term_dict", {})
    for name, (criterion, weight) in terms.items():
        if not isinstance(criterion, Recorded):
            terms[name] = (Recorded(criterion), weight)
    if hasattr(box, "stage_end_epoch"):
        box.stage_end_epoch = -1
    return box


def _check_paths(section: dict[str, Any], model: nn.Module | None, role: str) -> None:
    """Hooked modules must exist; a wrapper's own modules are its business."""
    wrapped = "auxiliary_model_wrapper" in section
    if model is None or section.get("sequential") or section.get("adaptations"):
        return
    names = [name for name, _ in model.named_modules()]
    hooks = section.get("forward_hook") or {}
    if not isinstance(hooks, dict):
        raise UserError(f"train.{role}.forward_hook must hold `output: [layer]` lines")
    for paths in hooks.values():
        for path in paths if isinstance(paths, list) else [paths] if paths else []:
            if not isinstance(path, str):
                raise UserError(f"train.{role}.forward_hook: {path!r} is no layer's name")
            bare = path.removeprefix("model.") if wrapped else path
            if (wrapped and bare == path) or bare in (".", ""):
                continue
            if bare not in names and not _counts_from_the_end(model, bare):
                raise UserError(f"the {role} has no layer {bare!r}{nearest(bare, names)}")


def _counts_from_the_end(model: nn.Module, path: str) -> bool:
    """Whether it is a path with negative numbers (`layer1.-1.relu`), as torchdistill resolves it."""
    if re.search(r"(^|\.)-\d", path) is None:
        return False
    try:
        return get_module(model, path) is not None
    except IndexError:
        return False


class Recorded(nn.Module):
    """A loss term that remembers its last value, and those of the terms inside it."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.value: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.value = self.criterion(*args, **kwargs)
        return self.value

    def terms(self, name: str) -> dict[str, Tensor]:
        """This term under `name`, or the named terms it consists of."""
        inner = getattr(self.criterion, "terms", None)
        assert self.value is not None
        return dict(inner) if inner else {name: self.value}


def trained_network(box: Any) -> nn.Module:
    """The student as the box trains it, wrapper included."""
    network: nn.Module = box.student_model if hasattr(box, "student_model") else box.model
    return network


def use_local_statistics(box: Any) -> None:
    """Our losses on each process's share of the batch, as in the released code."""
    for module in trained_network(box).modules():
        if isinstance(module, Loss):
            module.use_local_statistics()


def counts_images(box: Any) -> bool:
    """Whether the student's wrapper has a loss that needs to know which images a batch holds."""
    loss = getattr(trained_network(box), "distillation_loss", None)
    return "keys" in getattr(loss, "needs", ())


def give_keys(box: Any, keys: list[tuple[int, int]]) -> None:
    """Tell such a loss the (epoch, index) of the next batch's images."""
    trained_network(box).keys = torch.tensor(keys)


def check_train_images(box: Any, images: int) -> None:
    """Raise a UserError where a loss of ours was told another number of training images."""
    told = getattr(getattr(trained_network(box), "distillation_loss", None), "train_images", images)
    if told != images:
        raise UserError(f"SimpleRecipeWrapper: train_images is {told}, the data set has {images}")


def start_epoch(box: Any, models: Models, epoch: int) -> None:
    """The box's own start of an epoch; then the frozen teacher's backbone in evaluation mode.

    A wrapper around the teacher stays in training mode: its normalisation uses batch statistics, and
    its own modules may learn.
    """
    box.pre_epoch_process(epoch=epoch)
    groups = box.optimizer.param_groups
    learning = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    teacher = models.teacher
    if teacher is not None and not any(id(p) in learning for p in teacher.parameters()):
        teacher.eval()


def named_losses(box: Any, total: Tensor) -> dict[str, Tensor]:
    """`loss`, and every term by name, as scalars in the type of the total."""
    terms: dict[str, Tensor] = {}
    for name, (criterion, _) in getattr(box.criterion, "term_dict", {}).items():
        if isinstance(criterion, Recorded):
            terms |= criterion.terms("term_loss" if name == "loss" else name)
    if total.numel() != 1:
        shape = tuple(total.shape)
        raise UserError(f"train.criterion: a loss of shape {shape}: reduce it to mean or sum")
    total = total.reshape(())  # torchdistill's CRD gives (1,)
    return {"loss": total, **{k: v.detach().mean().to(total.dtype) for k, v in terms.items()}}


def extras(box: Any, models: Models) -> dict[str, dict[str, Tensor]]:
    """What is trained or tracked besides the plain student: wrappers' and criteria's tensors."""
    plain = [models.student, *([models.teacher] if models.teacher is not None else [])]
    known = {value.data_ptr() for model in plain for value in model.state_dict().values()}
    extra: dict[str, dict[str, Tensor]] = {}
    for role, module in _extra_modules(box).items():
        state = module.state_dict()
        extra[role] = {k: v for k, v in state.items() if v.numel() and v.data_ptr() not in known}
    return extra


def load_extras(box: Any, saved: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `extras` returned."""
    for role, module in _extra_modules(box).items():
        own = module.state_dict()
        with torch.no_grad():
            for name, value in saved[role].items():
                own[name].copy_(value)


def _extra_modules(box: Any) -> dict[str, nn.Module]:
    modules = {"student": trained_network(box)}
    if getattr(box, "teacher_model", None) is not None:
        modules["teacher"] = box.teacher_model
    for name, (criterion, _) in getattr(box.criterion, "term_dict", {}).items():
        modules[f"criterion.{name}"] = criterion
    return modules
