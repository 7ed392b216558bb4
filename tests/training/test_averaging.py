"""A moving average of the student: timm's, measured and handed on, and in no way lost by a stop."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from deit import main
from srd.files.checkpoint import load_file, load_weights
from srd.training.averaging import RAW, Average, trained
from tests.narrow import narrow
from tests.training.test_resume import arguments

EMA = "--set=train.ema_decay=0.9"


@pytest.fixture(scope="module")
def averaged(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, open_run: Callable[[Path], Any]
) -> Any:
    """A run of two epochs with a moving average."""
    output = tmp_path_factory.mktemp("averaged")
    with narrow():
        main.run(arguments(recipe, output, EMA))
    return open_run(output / "run")


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_formulas(warmup: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = Average(model, 0.9, warmup)
    expected: dict[str, torch.Tensor] = {}
    for update in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
            model(torch.randn(8, 3))
        average.update(update)
        decay = 0.0 if update == 1 else 0.9
        if warmup:  # timm counts from the second update
            decay = min(0.9, 1 - update ** (-2 / 3))
        for name, value in model.state_dict().items():
            old = expected.get(name, value)
            mean = decay * old + (1 - decay) * value if value.is_floating_point() else value
            expected[name] = mean.clone()
    for name, value in average.ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_in_its_place_only_inside() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, 0.5, False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nn.init.zeros_(average.ema.module.weight)
    with average.in_place():
        assert not model.weight.any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_has_both_and_is_taken_up(averaged: Any) -> None:
    state = load_file(averaged.checkpoints / "best.pth")
    assert not torch.equal(state["model"]["head.weight"], state[RAW]["head.weight"])
    assert torch.equal(trained(state)["model"]["head.weight"], state[RAW]["head.weight"])
    assert set(state[RAW]) < set(state["model"])  # which has the projector besides


@pytest.mark.usefixtures("narrow")
def test_the_run_measures_and_hands_on_the_average(averaged: Any, recipe: Path, deit: Any) -> None:
    best = averaged.state("best.pth")
    student = load_weights(averaged.path / "student.safetensors")
    assert all(torch.equal(best["model"][name], value) for name, value in student.items())
    rows = averaged.rows("eval")
    row = max((row for row in rows if "model" not in row), key=lambda row: row["acc1"])
    for place in (averaged.path, averaged.checkpoints / "best.pth"):
        shown = deit(f"--config={averaged.path / 'config.yaml'}", f"--checkpoint={place}")
        assert f"acc1 {row['acc1']:.2f}" in shown.out and f"loss {row['loss']:.4f}" in shown.out


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_training_itself_is_the_same_with_an_average(
    averaged: Any, recipe: Path, deit: Any, tmp_path: Path, open_run: Any
) -> None:
    assert deit(*arguments(recipe, tmp_path)).code == 0
    plain = open_run(tmp_path / "run")
    assert plain.rows("step") == averaged.rows("step")
    raw, of_average = (
        [row["loss"] for row in averaged.rows("eval") if row.get("model") == model]
        for model in ("raw", None)
    )
    assert [row["loss"] for row in plain.rows("eval")] == raw != of_average
    assert RAW not in plain.state()
    own = averaged.state()[RAW]
    assert all(torch.equal(plain.state()["model"][name], value) for name, value in own.items())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("step", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_stops_goes_on_to_the_same_bits(
    averaged: Any, recipe: Path, deit: Any, tmp_path: Path, open_run: Any, strike: Any, step: int
) -> None:
    strike(lambda: os.kill(os.getpid(), signal.SIGTERM), step)
    assert deit(*arguments(recipe, tmp_path, EMA)).code == 143
    assert deit(*arguments(recipe, tmp_path, EMA)).code == 0
    open_run(tmp_path / "run").assert_same(averaged)


@pytest.mark.usefixtures("narrow")
@pytest.mark.slow
def test_an_average_begins_and_ends_with_extend_alone(
    averaged: Any, recipe: Path, deit: Any, tmp_path: Path, open_run: Any
) -> None:
    shutil.copytree(averaged.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    off = arguments(recipe, tmp_path, "--epochs=3")
    assert deit(*off).code == 2
    raw = run.state()[RAW]["head.weight"]
    assert deit(*off, "--extend").code == 0
    assert RAW not in run.state() and not torch.equal(run.state()["model"]["head.weight"], raw)
    on = arguments(recipe, tmp_path, "--epochs=4", EMA)
    refused = deit(*on)
    assert refused.code == 2 and "train.ema_decay: None -> 0.9" in refused.err
    assert deit(*on, "--extend").code == 0 and RAW in run.state()


def test_a_warm_up_of_nothing_is_refused(recipe: Path, deit: Any, tmp_path: Path) -> None:
    refused = deit(*arguments(recipe, tmp_path, "--set=train.ema_warmup=true"))
    assert refused.code == 2 and "train.ema_decay" in refused.err


def test_timms_class_is_what_it_was() -> None:
    """The first update takes the weights as they are: what `Average` says of it."""
    assert ModelEmaV3(nn.Linear(1, 1), decay=0.9).get_decay(1) == 0.0
