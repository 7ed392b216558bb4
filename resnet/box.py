"""torchdistill's boxes: built from a checked recipe, and made to behave.

What torchdistill lacks is added around it: weights are read as data, the frozen teacher stays in
evaluation mode, loss terms have names, batches follow (seed, epoch), and what a step changes can be
saved and put back.
"""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from torchdistill.common.main_util import import_dependencies
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.interfaces.registry import FORWARD_PROC_FUNC_DICT
from torchdistill.core.training import get_training_box
from torchdistill.datasets.registry import get_collate_func
from torchdistill.losses.registry import (
    HIGH_LEVEL_LOSS_DICT,
    LOSS_DICT,
    LOSS_WRAPPER_DICT,
    LOW_LEVEL_LOSS_DICT,
    MIDDLE_LEVEL_LOSS_DICT,
)
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, get_model
from torchdistill.optim.registry import OPTIM_DICT, SCHEDULER_DICT
from torchvision import models as torchvision_models

from resnet.recipe import Recipe
from srd.data.views import VIEW, Batch, TrainBatches, make_loader, seeded
from srd.distributed import processes as dist
from srd.errors import UserError, nearest
from srd.files.checkpoint import explain_mismatch, load_parts
from srd.method.simple_recipe import SimpleRecipeLoss

REGISTRIES = (
    HIGH_LEVEL_LOSS_DICT, MIDDLE_LEVEL_LOSS_DICT, LOW_LEVEL_LOSS_DICT, LOSS_DICT, LOSS_WRAPPER_DICT,
    AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, OPTIM_DICT, SCHEDULER_DICT,
    FORWARD_PROC_FUNC_DICT,
)  # fmt: skip


class Models(NamedTuple):
    """The networks of a recipe; the teacher is None for plain training."""

    student: nn.Module
    student_name: str
    teacher: nn.Module | None
    teacher_name: str | None


def load_models(recipe: Recipe, device: torch.device) -> Models:
    """Build teacher and student, and load the weights that the recipe names, as data."""
    import_dependencies(recipe.config.get("dependencies"))
    section = recipe.config["models"]
    student = section.get("student_model", section.get("model"))
    teacher = section.get("teacher_model")
    if student is None:
        raise UserError("models: needs a student_model (or a model, for plain training)")
    return Models(
        _load_model(student, "student").to(device),
        student["key"],
        _load_model(teacher, "teacher").to(device) if teacher else None,
        teacher["key"] if teacher else None,
    )


def _load_model(section: dict[str, Any], role: str) -> nn.Module:
    key = section.get("key")
    known = [name for name, value in vars(torchvision_models).items() if callable(value)]
    known = [
        name for name in known if name.islower() and not name.startswith(("_", "get_", "list_"))
    ]
    if not isinstance(key, str) or (key not in known and key not in MODEL_DICT):
        raise UserError(f"unknown {role} model {key!r}{nearest(str(key), [*known, *MODEL_DICT])}")
    section = {"kwargs": {}, **section}
    model = get_image_classification_model(section) or get_model(key, None, **section["kwargs"])
    file = section.get("src_ckpt")
    if file and Path(file).expanduser().is_file():
        load_plain(model, Path(file).expanduser(), f"the {role} {key}")
    elif file and role == "teacher":
        raise UserError(
            f"no weights for the teacher {key} at {file} (models.teacher_model.src_ckpt)"
        )
    return model


def load_plain(model: nn.Module, file: Path, what: str) -> list[str]:
    """Load a file's weights into `model`, strictly; names what a wrapper keeps beside them."""
    weights, extras = load_parts(file)
    explain_mismatch(model.state_dict(), weights, file, what)
    model.load_state_dict(weights)
    return list(extras)


def make_box(recipe: Recipe, models: Models, device: torch.device, lr_factor: int) -> Any:
    """torchdistill's box for the recipe's `train` section, its terms recorded, its teacher frozen.

    Raises:
        UserError: an unknown registry key, a module path that does not exist, or settings that
            the box refuses.
    """
    train = deepcopy(recipe.config["train"])  # torchdistill multiplies learning rates in place
    if "stage1" in train:
        raise UserError("train: several stages are not supported yet; run them one after the other")
    for role, model in (("teacher", models.teacher), ("student", models.student)):
        section = train.get(role) or (train.get("model") if role == "student" else None) or {}
        _check_paths(section, model, role)
        if "src_ckpt" in section:
            raise UserError(f"train.{role}.src_ckpt: put it under models, where it is read as data")
    if train.get("optimizer", {}).get("grad_accum_step", 1) != 1:
        raise UserError(
            "train.optimizer.grad_accum_step: not supported; set the effective batch size"
        )
    for key in ("pre_forward_process", "post_forward_process"):
        if key in train:
            raise UserError(f"train.{key}: not supported; the update is this project's own")
    arguments = (recipe.config["datasets"], train, device, None, False, lr_factor)
    try:
        if models.teacher is None:
            box: Any = get_training_box(models.student, *arguments)
        else:
            box = get_distillation_box(models.teacher, models.student, *arguments)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(_explain(error)) from None
    if box.optimizer is None:
        raise UserError("train: needs an optimizer")
    for name, (criterion, weight) in getattr(box.criterion, "term_dict", {}).items():
        box.criterion.term_dict[name] = (Recorded(criterion), weight)
    return box


def _explain(error: Exception) -> str:
    """torchdistill's complaint, with the nearest registered name where a key is unknown."""
    message = " ".join(str(error).split())
    unknown = re.search(r"`(\w+)` (?:registered|is not expected)", message)
    if unknown:
        known = [name for registry in REGISTRIES for name in registry]
        hint = nearest(unknown.group(1), known) if unknown.group(1) != "None" else ": name one"
        return f"train: {message}{hint}"
    if isinstance(error, KeyError):
        return f"train: a setting is missing: {message}"
    return f"train: {message}"


def _check_paths(section: dict[str, Any], model: nn.Module | None, role: str) -> None:
    """Hooked modules must exist; a wrapper's own modules are its business."""
    wrapped = "auxiliary_model_wrapper" in section
    if model is None or section.get("sequential") or section.get("adaptations"):
        return
    names = [name for name, _ in model.named_modules()]
    for paths in section.get("forward_hook", {}).values():
        for path in paths or ():
            bare = path.removeprefix("model.") if wrapped else path
            if (wrapped and bare == path) or bare in (".", ""):
                continue
            if bare not in names:
                raise UserError(f"the {role} has no layer {bare!r}{nearest(bare, names)}")


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
    """Our representation loss on each process's share of the batch, as in the released code."""
    for module in trained_network(box).modules():
        if isinstance(module, SimpleRecipeLoss):
            module.use_local_statistics()


def start_epoch(box: Any, models: Models, epoch: int) -> None:
    """The box's own start of an epoch; then the frozen teacher's backbone in evaluation mode.

    A wrapper around the teacher stays in training mode: its normalisation uses batch statistics.
    """
    box.pre_epoch_process(epoch=epoch)
    if models.teacher is not None and not box.teacher_updatable:
        models.teacher.eval()


def named_losses(box: Any, total: Tensor) -> dict[str, Tensor]:
    """`loss`, and every term by name, as scalars in the type of the total."""
    terms: dict[str, Tensor] = {}
    for name, (criterion, _) in getattr(box.criterion, "term_dict", {}).items():
        if isinstance(criterion, Recorded):
            terms |= criterion.terms("term_loss" if name == "loss" else name)
    return {"loss": total, **{k: v.detach().mean().to(total.dtype) for k, v in terms.items()}}


def extras(box: Any, models: Models) -> dict[str, dict[str, Tensor]]:
    """What is trained or tracked besides the plain student: wrappers' and criteria's tensors."""
    plain = [models.student, *([models.teacher] if models.teacher is not None else [])]
    known = {value.data_ptr() for model in plain for value in model.state_dict().values()}
    found = {}
    for role, module in _extra_modules(box).items():
        state = module.state_dict()
        found[role] = {k: v for k, v in state.items() if v.numel() and v.data_ptr() not in known}
    return found


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


class SeededItems(Dataset[Any]):
    """A data set whose draws for (epoch, index) follow (seed, epoch, index)."""

    def __init__(self, items: Any, seed: int) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with seeded(VIEW, self.seed, epoch, index):
            return self.items[index]


def as_batch(items: list[Any]) -> Batch:
    """(image, class[, ...]) pairs as the evaluator's batch."""
    images, targets = default_collate([item[:2] for item in items])
    return Batch(images, targets, [])


class TrainInput(NamedTuple):
    """The training batches in torchdistill's own form, in our order."""

    loader: DataLoader[Any]
    batches: TrainBatches
    images: int
    class_names: list[str] | None  # where the data set knows them, as torchvision's do


def train_input(box: Any, recipe: Recipe, seed: int, pin_memory: bool) -> TrainInput:
    """Our loader in the place of the box's: same data, batch size and collation, seeded order."""
    theirs = box.train_data_loader
    if theirs is None:
        raise UserError("train.train_data_loader: no such dataset_id under datasets")
    if not isinstance(theirs.sampler, RandomSampler):
        raise UserError("train.train_data_loader.sampler: training is shuffled, use RandomSampler")
    section = recipe.config["train"]["train_data_loader"]
    size = len(theirs.dataset)
    batches = TrainBatches(size, theirs.batch_size, seed, dist.rank(), dist.world_size())
    collate = get_collate_func(section.get("collate_fn")) or default_collate
    items = SeededItems(theirs.dataset, seed)
    loader = make_loader(items, batches, theirs.num_workers, pin_memory, collate)
    names = getattr(recipe.config["datasets"][section["dataset_id"]], "classes", None)
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return TrainInput(loader, batches, size, names if known else None)


def split_items(items: Any) -> tuple[Tensor, Tensor, Any]:
    """A training batch as (images, targets, supplementary)."""
    images, targets, *more = items
    return images, targets, more[0] if more else None
