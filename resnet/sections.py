"""Holds the sections of a recipe to `resnet.allowed`: what torchdistill builds from them later.

Most of a file is no tag but keys of torchdistill's registries, with their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torchdistill.datasets.registry import DATASET_WRAPPER_DICT
from torchdistill.losses.registry import (
    HIGH_LEVEL_LOSS_DICT,
    LOSS_WRAPPER_DICT,
    LOW_LEVEL_LOSS_DICT,
    MIDDLE_LEVEL_LOSS_DICT,
)
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT

from resnet import allowed
from resnet.nodes import Section
from resnet.places import Places
from resnet.trust import TRUST, Made, check_arguments, check_value, own, own_arguments
from srd.errors import UserError, nearest

Table = Mapping[str, tuple[str, ...]]
TRAIN = (
    "num_epochs", "log_freq", "train_data_loader", "val_data_loader", "teacher", "student", "model",
    "optimizer", "scheduler", "criterion", "pre_epoch_process", "pre_forward_process",
    "post_forward_process", "post_epoch_process",
)  # fmt: skip
MODEL = ("key", "kwargs", "src_ckpt", "dst_ckpt", "sync_bn", "repo_or_dir")
NETWORK = (
    "adaptations", "auxiliary_model_wrapper", "forward_hook", "forward_proc", "frozen_modules",
    "requires_grad", "sequential", "src_ckpt", "wrapper",
)  # fmt: skip
LOADER = (
    "dataset_id", "sampler", "kwargs", "collate_fn", "batch_sampler", "dataset_wrapper",
    "requires_supp", "cache_output",
)  # fmt: skip
LOADER_ARGUMENTS = (
    "batch_size", "num_workers", "pin_memory", "drop_last", "persistent_workers", "prefetch_factor",
    "timeout",
)  # fmt: skip
SAMPLER_ARGUMENTS = ("replacement", "num_samples", "shuffle", "seed", "drop_last")
OPTIMIZER = (
    "key", "kwargs", "module_wise_configs", "module_wise_kwargs", "filters_params", "max_grad_norm",
    "grad_accum_step",
)  # fmt: skip
PARALLEL = ("DataParallel", "DistributedDataParallel")


class Sections:
    """Checks a recipe's sections; `places` is where it may write.

    Raises:
        UserError: with the line of the section, what is wrong and how to mend it.
    """

    def __init__(self, recipe: Section, places: Places) -> None:
        self.recipe, self.places = recipe, places

    def check(self) -> None:
        """Look over everything that torchdistill, or this project, builds or writes from the file."""
        self.dependencies(self.recipe.get("dependencies"))
        for name, data in self.part(self.recipe, "datasets", known=None).items():
            if isinstance(data, Made) and data.kind not in ("data set", "data sets"):
                raise UserError(f"{data.where}: datasets.{name[:100]} is {data.name}: no data set")
        models = self.part(self.recipe, "models", known=None)
        for role in models:
            if role[:1] != "_":
                self.model(self.part(models, role, MODEL), f"models.{role}")
        test = self.part(self.recipe, "test", ("test_data_loader",))
        self.loader(test, "test_data_loader", "test")
        self.train(self.recipe, "train")

    def part(self, parent: Section, name: str, known: tuple[str, ...] | None = ()) -> Section:
        """The mapping under `name`, an empty one where nothing stands; its keys are in `known`."""
        found = parent.get(name)
        if found is None:
            found = Section(parent.where)
        if not isinstance(found, Section):
            raise UserError(f"{parent.where}: {name} must hold `key: value` lines")
        for key in found:
            if not isinstance(key, str):
                raise UserError(f"{found.where}: {name} has a key that is no name: {key!r}")
            if known is not None and key not in known and key[:1] != "_":
                raise UserError(
                    f"{found.where}: {name} has no setting {key[:100]!r}{nearest(key, known)}; {TRUST}"
                )
        return found

    def dependencies(self, names: Any) -> None:
        where = self.recipe.where
        for name in [names] if isinstance(names, str) else names or []:
            if name not in allowed.DEPENDENCIES:
                raise UserError(
                    f"{where}: dependencies may name {', '.join(allowed.DEPENDENCIES)} only, not "
                    f"{str(name)[:100]!r}; {TRUST}"
                )

    def model(self, section: Section, name: str) -> None:
        """A network by its registered name, its weights and its checkpoints."""
        key, where = section.get("key"), section.where
        if "repo_or_dir" in section:
            raise UserError(f"{where}: {name}.repo_or_dir runs a repository's code: not supported")
        if isinstance(key, str) and not own(MODEL_DICT.get(key)):
            known = (*allowed.NETWORKS, *torchvision.models.list_models(torchvision.models))
            if key not in known:
                raise UserError(f"{where}: unknown {name} {key[:100]!r}{nearest(key, known)}")
        kwargs = self.part(section, "kwargs", known=None)
        check_arguments(kwargs, allowed.NETWORK_ARGUMENTS, f"{name}.kwargs", where)
        self.places.check(section.get("dst_ckpt"), f"{name}.dst_ckpt", where)
        if not isinstance(section.get("src_ckpt"), str | None):
            raise UserError(f"{where}: {name}.src_ckpt must be the name of a file")

    def train(self, parent: Section, name: str) -> None:
        stages = tuple(key for key in parent.get(name) or () if str(key).startswith("stage"))
        section = self.part(parent, name, (*TRAIN, *stages))
        for stage in stages:
            self.train(section, stage)
        for role in ("teacher", "student", "model"):
            self.network(section, role)
        for loader in ("train_data_loader", "val_data_loader"):
            self.loader(section, loader, name)
        optimizer = self.part(section, "optimizer", OPTIMIZER)
        self.registered(section, "optimizer", allowed.OPTIMIZERS, OPTIMIZER)
        for own_settings in ("module_wise_configs", "module_wise_kwargs"):
            check_value(optimizer.get(own_settings), own_settings, optimizer.where)
        keys = ("key", "kwargs", "scheduling_step")
        self.registered(section, "scheduler", allowed.SCHEDULERS, keys)
        self.criterion(section)
        for process in ("pre_epoch_process", "post_epoch_process"):
            self.choice(section, process, allowed.EPOCH_PROCESSES)
        for plain in ("num_epochs", "log_freq"):
            check_value(section.get(plain), plain, section.where)

    def criterion(self, train: Section) -> None:
        keys = ("key", "args", "kwargs", "func2extract_model_loss")
        self.registered(train, "criterion", allowed.CRITERIA, keys, HIGH_LEVEL_LOSS_DICT)
        criterion = self.part(train, "criterion", keys)
        self.choice(criterion, "func2extract_model_loss", ("extract_model_loss_dict",))
        terms = self.part(self.part(criterion, "kwargs", known=None), "sub_terms", known=None)
        for name in terms:
            term = self.part(terms, name, ("criterion", "criterion_wrapper", "weight"))
            check_value(term.get("weight"), "weight", term.where)
            losses = {**MIDDLE_LEVEL_LOSS_DICT, **LOW_LEVEL_LOSS_DICT}
            self.registered(term, "criterion", allowed.LOSSES, ("key", "kwargs"), losses)
            name, table = "criterion_wrapper", allowed.CRITERION_WRAPPERS
            self.registered(term, name, table, ("key", "args", "kwargs"), LOSS_WRAPPER_DICT)

    def network(self, parent: Section, role: str) -> None:
        """How a network is cut, hooked, wrapped and extended."""
        section = self.part(parent, role, NETWORK)
        for plain in ("forward_hook", "frozen_modules", "requires_grad", "sequential"):
            check_value(section.get(plain), plain, section.where)
        self.choice(section, "forward_proc", allowed.FORWARDS)
        if isinstance(section.get("wrapper"), dict):
            self.choice(self.part(section, "wrapper", ("key",)), "key", PARALLEL)
        else:
            self.choice(section, "wrapper", PARALLEL)
        adaptations = self.part(section, "adaptations", known=None)
        for name in adaptations:
            self.registered(adaptations, name, allowed.ADAPTATIONS)
        if section.get("auxiliary_model_wrapper") is not None:
            self.model_wrapper(section)

    def model_wrapper(self, network: Section) -> None:
        """torchdistill's wrapper around a network, which may cut the network itself, and wrap another."""
        name = "auxiliary_model_wrapper"
        keys = ("key", "kwargs", "sequential", "frozen_modules", "adaptations")
        wrappers = AUXILIARY_MODEL_WRAPPER_DICT
        self.registered(network, name, allowed.MODEL_WRAPPERS, keys, wrappers)
        section = self.part(network, name, keys)
        cut = {key: section[key] for key in keys[2:] if key in section}
        self.network(Section(section.where, {name: Section(section.where, cut)}), name)
        kwargs = self.part(section, "kwargs", known=None)
        for argument, value in kwargs.items():
            if argument.endswith("_ckpt"):
                self.places.check(value, f"{name}.kwargs.{argument}", section.where)
        if kwargs.get("minimal") is not None:
            self.network(kwargs, "minimal")

    def loader(self, parent: Section, name: str, above: str) -> None:
        section = self.part(parent, name, LOADER)
        check_value(section.get("dataset_id"), "dataset_id", section.where)
        arguments = self.part(section, "kwargs", known=None)
        check_arguments(arguments, LOADER_ARGUMENTS, f"{above}.{name}.kwargs", section.where)
        sampler = self.part(section, "sampler", ("class_or_func", "kwargs"))
        kind = sampler.get("class_or_func")
        if kind is not None and not (isinstance(kind, Made) and kind.kind == "sampler"):
            raise UserError(f"{section.where}: class_or_func of {name} must be a sampler; {TRUST}")
        arguments = self.part(sampler, "kwargs", known=None)
        check_arguments(arguments, SAMPLER_ARGUMENTS, f"{name}.sampler.kwargs", section.where)
        self.registered(section, "batch_sampler", allowed.BATCH_SAMPLERS)
        wrapper = ("key", "args", "kwargs")
        self.registered(
            section, "dataset_wrapper", allowed.DATASET_WRAPPERS, wrapper, DATASET_WRAPPER_DICT
        )
        self.choice(section, "collate_fn", ())

    def registered(
        self,
        parent: Section,
        name: str,
        table: Table,
        keys: tuple[str, ...] = ("key", "kwargs"),
        registry: Mapping[str, Any] | None = None,
    ) -> None:
        """The section `name`, if there is one: a registered key, and arguments of its own.

        Args:
            registry: where this project may have registered more.
        """
        section = self.part(parent, name, keys)
        key, where = section.get("key"), section.where
        if not isinstance(key, str | None):
            raise UserError(f"{where}: the key of {name} must be a name")
        if section.get("args"):
            raise UserError(f"{where}: {name} takes its arguments by name, under kwargs")
        ours = {k: own_arguments(v) for k, v in (registry or {}).items() if own(v)}
        if key is not None and key not in (table := {**table, **ours}):
            raise UserError(
                f"{where}: {name} cannot be {key[:100]!r}, which is not on the list of "
                f"resnet/allowed.py{nearest(key[:100], table)}; {TRUST}"
            )
        kwargs = self.part(section, "kwargs", known=None)
        given = {k: v for k, v in kwargs.items() if not _checked_elsewhere(k)}
        check_arguments(given, table[key] if key else (), f"{name} {key}", where)
        for argument in set(kwargs) - set(given):
            if argument not in (table[key] if key else ()):
                raise UserError(f"{where}: {name} {key} takes no {argument}; {TRUST}")

    def choice(self, section: Section, name: str, known: tuple[str, ...]) -> None:
        value = section.get(name)
        if value is not None and value not in known:
            hint = nearest(str(value), known)
            raise UserError(
                f"{section.where}: {name} cannot be {str(value)[:100]!r}{hint}; {TRUST}"
            )


def _checked_elsewhere(argument: str) -> bool:
    """Arguments that are sections of their own, or the names of files."""
    return argument in ("sub_terms", "minimal") or argument.endswith("_ckpt")
