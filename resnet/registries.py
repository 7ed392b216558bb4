"""Holds registry keys to `resnet.allowed`: what torchdistill builds from a file's sections later.

Only what is built, read or written from them is looked at here. A section that is no mapping is passed
over: torchdistill can build nothing from it.
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
from resnet.places import Places, names_a_file
from resnet.trust import TRUST, Made, check_arguments, check_value, own
from srd.errors import UserError, nearest

Table = Mapping[str, tuple[str, ...] | None]
NETWORK = (
    "adaptations", "auxiliary_model_wrapper", "forward_hook", "forward_proc", "frozen_modules",
    "requires_grad", "sequential", "src_ckpt", "wrapper",
)  # fmt: skip
LOADER_ARGUMENTS = (
    "batch_size", "num_workers", "pin_memory", "drop_last", "persistent_workers", "prefetch_factor",
    "timeout",
)  # fmt: skip
SAMPLER_ARGUMENTS = ("replacement", "num_samples", "shuffle", "seed", "drop_last")
PARALLEL = ("DataParallel", "DistributedDataParallel")


class Registries:
    """Checks a recipe; `places` is where it may write.

    Raises:
        UserError: with the line of the section, what is wrong and how to mend it.
    """

    def __init__(self, recipe: Section, places: Places) -> None:
        self.recipe, self.places = recipe, places

    def check(self) -> None:
        """Look over everything that torchdistill, or this project, builds or writes from the file."""
        self.dependencies(self.recipe.get("dependencies"))
        for name, data in self.part(self.recipe, "datasets").items():
            if isinstance(data, Made) and data.kind not in ("data set", "data sets"):
                raise UserError(f"{data.where}: datasets.{name[:100]} is {data.name}: no data set")
        models = self.part(self.recipe, "models")
        for role in models:
            if role[:1] != "_":
                self.model(self.part(models, role), role)
        self.loader(self.part(self.recipe, "test"), "test_data_loader", "test")
        self.train(self.recipe, "train")

    def part(self, parent: Section, name: str, known: tuple[str, ...] | None = None) -> Section:
        """The mapping under `name`, an empty one where there is none; its keys are in `known`."""
        found = parent.get(name)
        if not isinstance(found, Section):
            return Section(parent.where)
        for key in found:
            if not isinstance(key, str) or not key.isprintable():
                raise UserError(f"{found.where}: {name} has a key that is no name: {key!r}")
            if known is not None and key not in known and key[:1] != "_":
                raise UserError(
                    f"{found.where}: {name} has no setting {key[:100]!r}{nearest(key, known)}; {TRUST}"
                )
        return found

    def dependencies(self, names: Any) -> None:
        where = self.recipe.where
        for name in names if isinstance(names, list) else [names] if names else []:
            if name not in allowed.DEPENDENCIES:
                raise UserError(
                    f"{where}: dependencies may name {', '.join(allowed.DEPENDENCIES)} only, not "
                    f"{str(name)[:100]!r}; {TRUST}"
                )

    def model(self, section: Section, role: str) -> None:
        """A network by its registered name, its weights and its checkpoints."""
        key, where, name = section.get("key"), section.where, f"models.{role}"
        if section.get("repo_or_dir") is not None:
            raise UserError(f"{where}: {name}.repo_or_dir runs a repository's code: not supported")
        if isinstance(key, str) and not own(MODEL_DICT.get(key)):
            known = (*allowed.NETWORKS, *torchvision.models.list_models(torchvision.models))
            if key not in known:
                kind = "teacher" if role == "teacher_model" else "student"
                hint = nearest(key, known)
                raise UserError(f"{where}: unknown {kind} model {key[:100]!r}{hint}; {TRUST}")
        kwargs = self.part(section, "kwargs")
        check_arguments(kwargs, allowed.NETWORK_ARGUMENTS, f"{name}.kwargs", where)
        self.places.check(section.get("dst_ckpt"), f"{name}.dst_ckpt", where)
        source = section.get("src_ckpt")
        if not isinstance(source, str | None) or (source and not names_a_file(source)):
            raise UserError(f"{where}: {name}.src_ckpt must be the name of a file")

    def train(self, parent: Section, name: str) -> None:
        section = self.part(parent, name)
        for stage in (key for key in section if key.startswith("stage")):
            self.train(section, stage)
        for role in ("teacher", "student", "model"):
            self.network(section, role)
        for loader in ("train_data_loader", "val_data_loader"):
            self.loader(section, loader, name)
        self.registered(section, "optimizer", allowed.OPTIMIZERS)
        optimizer = self.part(section, "optimizer")
        for parts in ("module_wise_configs", "module_wise_kwargs"):
            check_value(optimizer.get(parts), parts, optimizer.where)
        self.registered(section, "scheduler", allowed.SCHEDULERS)
        for part in ("optimizer", "scheduler"):
            self.numbers(self.part(self.part(section, part), "kwargs"), part)
        self.criterion(section)
        for process in ("pre_epoch_process", "post_epoch_process"):
            self.choice(section, process, allowed.EPOCH_PROCESSES)

    def criterion(self, train: Section) -> None:
        self.registered(train, "criterion", allowed.CRITERIA, HIGH_LEVEL_LOSS_DICT)
        criterion = self.part(train, "criterion")
        self.choice(criterion, "func2extract_model_loss", ("extract_model_loss_dict",))
        terms = self.part(self.part(criterion, "kwargs"), "sub_terms")
        losses = {**MIDDLE_LEVEL_LOSS_DICT, **LOW_LEVEL_LOSS_DICT}
        for name in terms:
            term = self.part(terms, name, ("criterion", "criterion_wrapper", "weight"))
            check_value(weight := term.get("weight"), "weight", term.where)
            self.numbers(Section(term.where, {"weight": weight}), name)
            self.registered(term, "criterion", allowed.LOSSES, losses)
            wrappers = allowed.CRITERION_WRAPPERS
            self.registered(term, "criterion_wrapper", wrappers, LOSS_WRAPPER_DICT)

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
        adaptations = self.part(section, "adaptations")
        for name in adaptations:
            self.registered(adaptations, name, allowed.ADAPTATIONS)
        if section.get("auxiliary_model_wrapper") is not None:
            self.model_wrapper(section)

    def model_wrapper(self, network: Section) -> None:
        """torchdistill's wrapper around a network, which may cut the network itself, and wrap another."""
        name, cuts = "auxiliary_model_wrapper", ("sequential", "frozen_modules", "adaptations")
        self.registered(network, name, allowed.MODEL_WRAPPERS, AUXILIARY_MODEL_WRAPPER_DICT)
        section = self.part(network, name, ("key", "kwargs", *cuts))
        cut = {key: section[key] for key in cuts if key in section}
        self.network(Section(section.where, {name: Section(section.where, cut)}), name)
        kwargs = self.part(section, "kwargs")
        for argument, value in kwargs.items():
            if argument.endswith("_ckpt"):
                self.places.check(value, f"{name}.kwargs.{argument}", section.where)
        self.network(kwargs, "minimal")

    def loader(self, parent: Section, name: str, above: str) -> None:
        section = self.part(parent, name)
        where, name = section.where, f"{above}.{name}"
        check_value(section.get("dataset_id"), "dataset_id", where)
        check_arguments(self.part(section, "kwargs"), LOADER_ARGUMENTS, f"{name}.kwargs", where)
        sampler = self.part(section, "sampler", ("class_or_func", "kwargs"))
        kind = sampler.get("class_or_func")
        if kind is not None and not (isinstance(kind, Made) and kind.kind == "sampler"):
            raise UserError(f"{where}: {name}.sampler.class_or_func must be a sampler; {TRUST}")
        arguments = self.part(sampler, "kwargs")
        check_arguments(arguments, SAMPLER_ARGUMENTS, f"{name}.sampler.kwargs", where)
        self.registered(section, "batch_sampler", allowed.BATCH_SAMPLERS)
        wrappers = allowed.DATASET_WRAPPERS
        self.registered(section, "dataset_wrapper", wrappers, DATASET_WRAPPER_DICT)
        self.choice(section, "collate_fn", ())

    def registered(
        self,
        parent: Section,
        name: str,
        table: Mapping[str, tuple[str, ...]],
        registry: Mapping[str, Any] | None = None,
    ) -> None:
        """The section `name`, if there is one: a registered key, and arguments of its own.

        Args:
            registry: where this project may have registered more.
        """
        section = self.part(parent, name)
        key, where = section.get("key"), section.where
        if not isinstance(key, str | None):
            raise UserError(f"{where}: the key of {name} must be a name")
        if section.get("args"):
            raise UserError(f"{where}: {name} takes its arguments by name, under kwargs")
        ours: Table = {k: None for k, v in (registry or {}).items() if own(v)}
        known: Table = {**table, **ours}
        if key is not None and key not in known:
            raise UserError(
                f"{where}: {name} cannot be {key[:100]!r}, which is not on the list of "
                f"resnet/allowed.py{nearest(key[:100], known)}; {TRUST}"
            )
        kwargs = dict(self.part(section, "kwargs"))
        names = known[key] if key else ()
        for argument in ("sub_terms", "minimal", *(k for k in kwargs if k.endswith("_ckpt"))):
            if names is not None and argument in names:  # a section, or a file: looked at elsewhere
                kwargs.pop(argument, None)
        check_arguments(kwargs, names, f"{name}.{key}", where)

    def numbers(self, kwargs: Section, name: str) -> None:
        """What moves weights and learning rates is a number: texts would be met on the way only."""
        for argument, value in kwargs.items():
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, str) and argument not in allowed.MODES:
                    raise UserError(
                        f"{kwargs.where}: {name}.{argument} should be a number, not {inner[:100]!r}"
                    )

    def choice(self, section: Section, name: str, known: tuple[str, ...]) -> None:
        value = section.get(name)
        if value is not None and value not in known:
            hint = nearest(str(value), known)
            raise UserError(
                f"{section.where}: {name} cannot be {str(value)[:100]!r}{hint}; {TRUST}"
            )
