"""What is checked of images, labels and loaders before the first step."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from srd.data.guard import (
    Labelled,
    check_classes,
    check_descriptors,
    check_head,
    check_splits,
    check_targets,
)
from srd.data.labels import class_names
from srd.errors import UserError

AB = ["a", "b"]


def split(name: str, classes: list[str] | None, *targets: int) -> Labelled:
    return Labelled(name, len(targets), classes, np.array(targets))


def test_splits_that_agree_pass() -> None:
    check_splits([split("train", AB, 0, 1, 1), split("val", AB, 1), split("test", None, 7)])
    check_splits([Labelled("train", 3, None), Labelled("val", 3, AB)])


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([split("train", AB)], "train has no images"),
        ([split("train", AB, 0), split("val", None)], "val has no images"),
        ([split("train", AB, 0, 2)], r"train: .* class number 2, .* 2 classes, 0 to 1"),
        ([split("val", AB, 0, -1)], "class number -1"),
        ([split("train", [".git", "a"], 0)], r"\.git in train is a hidden folder"),
        ([split("train", AB, 0), split("val", ["b", "a"], 0)], "2 classes in train, 2 in val"),
        (
            [split("train", AB, 0), split("val", None, 0), split("test", ["a", "c"], 0)],
            "missing from test: b; only in test: c",
        ),
    ],
)
def test_splits_that_do_not(splits: list[Labelled], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_splits(splits)


def test_a_single_class_is_nothing_to_learn() -> None:
    for classes in (AB, [], None):
        check_classes(classes)
    with pytest.raises(UserError, match=r"all of one class, a, .* --unlabelled"):
        check_classes(["a"])


def test_a_head_has_the_datas_classes() -> None:
    check_head("it", 2, AB)
    check_head("it", 5, None)
    for known in (1, 3, 1000):
        with pytest.raises(UserError, match=f"^it knows {known} classes, the data has 2$"):
            check_head("it", known, AB)


def test_targets_are_classes() -> None:
    check_targets(torch.tensor([0, 1]), 2)
    check_targets(torch.empty(0, dtype=torch.long), 2)
    check_targets(torch.full((4, 2), 7.0), 2)  # mixed
    for wrong in (2, -1):
        with pytest.raises(UserError, match=f"class number {wrong}, .* 2 classes"):
            check_targets(torch.tensor([0, wrong]), 2)


def test_a_record_of_other_classes_is_no_reason_for_imagenets_names() -> None:
    assert class_names(2, AB) == ("a", "b")
    assert class_names(1000, AB) is None
    names = class_names(1000, None)
    assert names is not None and names[0] == "n01440764"


def test_loader_processes_need_open_files() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (70, limits[1]))
        check_descriptors(0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 70
        check_descriptors(2)  # it may allow itself more
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 80
        with pytest.raises(UserError, match="ulimit -n"):
            check_descriptors(limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
