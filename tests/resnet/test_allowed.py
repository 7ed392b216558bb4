"""The list of names: what published configurations use is on it, and it is true of the packages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torchdistill.core.interfaces import registry as processes
from torchdistill.datasets import registry as datasets
from torchdistill.losses import registry as losses
from torchdistill.models import registry as models
from torchdistill.models import wrapper as wrappers
from torchdistill.optim import registry as optim
from torchvision.models import list_models

from resnet import allowed
from resnet.recipe import read_recipe
from resnet.trust import _calls, _gets, _imported

REGISTRIES: list[tuple[Mapping[str, tuple[str, ...]], list[Mapping[str, Any]]]] = [
    (allowed.OPTIMIZERS, [optim.OPTIM_DICT]),
    (allowed.SCHEDULERS, [optim.SCHEDULER_DICT]),
    (allowed.LOSSES, [losses.LOSS_DICT, losses.MIDDLE_LEVEL_LOSS_DICT]),
    (allowed.CRITERIA, [losses.HIGH_LEVEL_LOSS_DICT]),
    (allowed.CRITERION_WRAPPERS, [losses.LOSS_WRAPPER_DICT]),
    (allowed.MODEL_WRAPPERS, [models.AUXILIARY_MODEL_WRAPPER_DICT]),
    (allowed.ADAPTATIONS, [models.ADAPTATION_MODULE_DICT, models.MODULE_DICT]),
    (allowed.DATASET_WRAPPERS, [datasets.DATASET_WRAPPER_DICT]),
    (allowed.BATCH_SAMPLERS, [datasets.BATCH_SAMPLER_DICT]),
]
# Keys in published files that no registry of torchdistill 1.1.5 holds: networks that `repo_or_dir`
# would fetch with their code, and plain values of older data sections and of a loss's settings.
ELSEWHERE = {"custom_densenet169", "custom_inception_v3", "custom_resnet152", "custom_densenet201"}
VALUES = {"ToTensor", "Normalize", "RandomCrop", "RandomHorizontalFlip", "CIFAR10", "gaussian"}


def published() -> list[str]:
    lines = (Path(__file__).parent / "torchdistill_names.tsv").read_text().splitlines()
    return [line.split("\t")[0] for line in lines if not line.startswith("#")]


def accepts(made: Any, arguments: tuple[str, ...]) -> bool:
    """Whether a callable has these arguments, or takes any."""
    parameters = inspect.signature(made).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes_any or set(arguments) <= set(parameters)


def test_every_published_object_is_on_the_list() -> None:
    names = [name for name in published() if "." in name]
    assert len(names) == 21
    assert [name for name in names if name not in {**_calls(), **_gets()}] == []


def test_every_published_tag_and_registry_key_is_on_the_list() -> None:
    keys = {name for name in published() if "." not in name}
    tags = {name for name in keys if name.startswith("!")}
    assert tags == {
        "!import_call", "!join", "!import_get", "!getattr", "!access_by_index_or_key"
    }  # fmt: skip
    known = {key for table, _ in REGISTRIES for key in table} | {*allowed.NETWORKS, *list_models()}
    assert keys - tags - known == ELSEWHERE | VALUES


def test_older_data_sections_stay_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "datasets: {a: {key: CIFAR10, splits: {a: {transform_configs: [{key: ToTensor}]}}}}\n"
        "models: {}\ntrain: {}\ntest: {}\n"
    )
    assert read_recipe(path).config["datasets"]["a"]["key"] == "CIFAR10"


def test_objects_exist_and_have_the_arguments() -> None:
    for name, (_, arguments, _) in _calls().items():
        assert arguments is None or accepts(_imported(name), arguments), name
    for name in _gets():
        _imported(name)


@pytest.mark.parametrize(("table", "registries"), REGISTRIES)
def test_registry_keys_exist_and_have_the_arguments(
    table: Mapping[str, tuple[str, ...]], registries: list[Mapping[str, Any]]
) -> None:
    for key, arguments in table.items():
        registered = next(registry[key] for registry in registries if key in registry)
        assert accepts(registered, arguments), key


def test_switches_are_what_the_packages_take_as_switches() -> None:
    listed: dict[Any, Any] = {
        _imported(name): arguments for name, (_, arguments, _) in _calls().items()
    }
    for table, registries in REGISTRIES:
        for key, arguments in table.items():
            listed[next(registry[key] for registry in registries if key in registry)] = arguments
    for module in vars(wrappers).values():  # with what wrappers build of a mapping of arguments
        if inspect.isclass(module) and module.__module__ == wrappers.__name__:
            listed.setdefault(module, None)
    for made, arguments in listed.items():
        for name, parameter in inspect.signature(made).parameters.items():
            if (arguments is None or name in arguments) and name not in allowed.EITHER:
                kind = type(parameter.default)
                assert (name in allowed.SWITCHES) or kind is not bool, (made, name)
                assert (name not in allowed.SWITCHES) or kind not in (int, float, str), (made, name)


def test_networks_and_processes_exist() -> None:
    assert set(allowed.NETWORKS) <= set(models.MODEL_DICT)
    assert set(allowed.FORWARDS) == set(processes.FORWARD_PROC_FUNC_DICT)
    known = {**processes.PRE_EPOCH_PROC_FUNC_DICT, **processes.POST_EPOCH_PROC_FUNC_DICT}
    assert set(allowed.EPOCH_PROCESSES) == set(known)
