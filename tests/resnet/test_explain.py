"""A file that does not give torchdistill what it reads is told so, with what stands there instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchdistill.core.util import set_hooks
from torchdistill.losses.registry import get_mid_level_loss
from torchdistill.models.wrapper import build_auxiliary_model_wrapper

from resnet.explain import box_explained, step_explained
from srd.errors import UserError

PATHS = {"teacher_linear_path": "linear", "student_linear_path": "linear", "reduction": "mean"}


def wrap(entry: dict[str, Any]) -> None:
    build_auxiliary_model_wrapper(
        {"auxiliary_model_wrapper": entry}, student_model=nn.Identity(),
        device=torch.device("cpu"), device_ids=None, distributed=False,
    )  # fmt: skip


def told(entry: dict[str, Any], build: Any) -> str:
    with pytest.raises(UserError) as error, box_explained({"stage1": {"terms": [entry]}}):
        build(entry)
    return str(error.value)


def test_a_wrapper_s_setting_that_goes_by_another_name() -> None:
    regressors = {"one": {"io": "output", "path": "fc", "regressor_kwargs": {}}}
    entry = {"key": "VariationalDistributor4VID", "kwargs": {"regressors": regressors}}
    assert told(entry, wrap) == (
        "train: the file does not give VariationalDistributor4VID what it needs: 'kwargs' (it gives "
        "'regressor_kwargs', which VariationalDistributor4VID does not read)"
    )


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({}, ""),
        ({"kernel_params": {}}, " (it gives 'kernel_params', which CCKDLoss does not read)"),
    ],
)
def test_a_loss_s_setting(more: dict[str, Any], hint: str) -> None:
    needs = "train: the file does not give CCKDLoss what it needs: 'kernel_config'"
    entry = {"key": "CCKDLoss", "kwargs": {**PATHS, **more}}
    assert told(entry, get_mid_level_loss) == needs + hint


def test_a_layer_that_a_wrapper_does_not_have() -> None:
    model = nn.ModuleDict({"translator": nn.Identity()})
    hooks = {"forward_hook": {"output": ["translater"]}}
    with pytest.raises(UserError, match="ModuleDict has no layer 'translater'"), box_explained({}):
        set_hooks(model, model, hooks, {})


def test_a_layer_that_a_loss_reads_and_no_hook_gives() -> None:
    kwargs = {f"{role}_output_path": "fc" for role in ("student", "teacher")}
    loss = get_mid_level_loss({"key": "SPKDLoss", "kwargs": {**kwargs, "reduction": "mean"}})
    with (
        pytest.raises(UserError, match="SPKDLoss finds no 'fc': no forward_hook"),
        step_explained(),
    ):
        loss({}, {}, None)
