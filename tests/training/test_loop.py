"""The training loop on a toy: what it leaves, and that stops and crashes leave no trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.config.fields import Plan
from srd.data.batches import TrainBatches
from srd.device import Precision
from srd.errors import RunFailed, Stopped
from srd.evaluation.accuracy import Accuracy, EvaluationStopped
from srd.files.checkpoint import load_file, load_weights
from srd.run.folder import RunFolder
from srd.run.log import RunLog, read_metrics
from srd.training.loop import Loop
from srd.training.parts import TrainData

PLAN = Plan(epochs=3, batch_size=4, log_every=1)  # 5 steps an epoch
SEED, SPEED = 5, "images_per_second"
SETTINGS = {"lr": 1, "identity": {"model": "toy"}}
Batch = tuple[Tensor, Tensor]
AtStep = Callable[[int], None]


class ToyTask:
    """A linear classifier whose steps draw from the seed that they are given."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.images, self.targets = torch.randn(22, 3), torch.arange(22) % 2
        self.weight = 2.0
        self.seeds: list[int] = []

    def losses(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        self.seeds.append(seed)
        images, targets = batch
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        ce = F.cross_entropy(self.model(images + noise), targets)
        return {"loss": ce * self.weight, "ce": ce}

    def checkpoint(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])

    def measure(self, stop: Callable[[], bool] = lambda: False) -> Accuracy:
        with torch.no_grad():
            hits = (self.model(self.images).argmax(dim=1) == self.targets).float().mean()
        return Accuracy(100 * hits.item(), 100.0, 0.5, 22, 1.0)


class Falling:
    """A schedule: the rate falls with every update."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.last = optimizer, -1

    def step_update(self, num_updates: int) -> None:
        self.last = num_updates
        self.optimizer.param_groups[0]["lr"] = 0.1 / (1 + num_updates)

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = state_dict["last"]


class Rows:
    """The rows of each batch, in the order of the batches."""

    def __init__(self, task: ToyTask, batches: TrainBatches) -> None:
        self.task, self.batches = task, batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            rows = [index for _, index in batch]
            yield self.task.images[rows], self.task.targets[rows]


def make_loop(
    folder: RunFolder,
    log: RunLog,
    plan: Plan = PLAN,
    at_step: AtStep = lambda step: None,
    *,
    seed: int = SEED,
    task: ToyTask | None = None,
    schedule: bool = True,
    **changed: Any,
) -> Loop:
    """The loop over a toy; `changed` are arguments of the loop's own."""
    task = task or ToyTask()
    optimizer = torch.optim.AdamW(task.model.parameters())
    batches = TrainBatches(22, plan.batch_size, seed)

    def prepare(batch: Batch, step: int) -> Batch:
        at_step(step)
        return batch

    parts: dict[str, Any] = {
        "task": task,
        "optimizer": optimizer,
        "schedule": Falling(optimizer) if schedule else None,
        "plan": plan,
        "seed": seed,
        "clip_norm": 1.0,
        "data": TrainData(loader=Rows(task, batches), batches=batches, prepare=prepare),
        "evaluate": task.measure,
        "precision": Precision.choose("off", torch.device("cpu")),
        "folder": folder,
        "log": log,
        "settings": SETTINGS,
        "start_epoch": lambda epoch: task.model.train(),
    }
    return Loop(**{**parts, **changed})


@contextmanager
def toy(path: Path, *arguments: Any, **changed: Any) -> Iterator[Loop]:
    """The loop over a toy, where `path` was left."""
    folder = RunFolder(path, "toy")
    folder.prepare()
    found, _ = folder.find_resume()
    state = load_file(found) if found else None
    log = RunLog(folder.path, first_step=state["position"]["updates"] if state else 0)
    loop = make_loop(folder, log, *arguments, **changed)
    if state:
        loop.load_state(state)
    try:
        yield loop
    finally:
        log.close()


def fit(
    path: Path, plan: Plan = PLAN, at_step: AtStep = lambda step: None, **changed: Any
) -> dict[str, Tensor]:
    """Train, from where `path` was left; returns the weights."""
    with toy(path, plan, at_step, **changed) as loop:
        loop.fit()
        return loop.task.model.state_dict()


def test_every_step_has_a_seed_of_its_own(tmp_path: Path) -> None:
    def seeds(name: str, seed: int) -> list[int]:
        task = ToyTask()
        fit(tmp_path / name, seed=seed, task=task)
        return task.seeds

    first = seeds("a", 5)
    assert len(set(first)) == 15
    assert seeds("b", 5) == first and not set(seeds("c", 6)) & set(first)


def test_the_end_of_an_epoch_is_told_to_the_half(tmp_path: Path) -> None:
    ends: list[float | None] = []

    def end_epoch(accuracy: Accuracy | None) -> None:
        ends.append(accuracy.acc1 if accuracy else None)

    fit(tmp_path, replace(PLAN, epochs=4, evaluate_every=2), end_epoch=end_epoch)
    evals = [row["acc1"] for row in rows(tmp_path) if row["kind"] == "eval"]
    assert len(evals) == 2 and ends == [None, evals[0], None]


def test_every_epoch_starts_once_and_again_where_a_run_goes_on(tmp_path: Path) -> None:
    starts: list[int] = []
    with pytest.raises(Stopped):
        fit(tmp_path, at_step=signal_at(6), start_epoch=starts.append)
    assert starts == [0, 1]
    fit(tmp_path, start_epoch=starts.append)
    assert starts == [0, 1, 1, 2]


def signal_at(step: int) -> AtStep:
    """SIGTERM in the middle of a step."""
    return lambda now: signal.raise_signal(signal.SIGTERM) if now == step else None


def rows(path: Path) -> list[dict[str, Any]]:
    """What was logged, without the speed."""
    found = read_metrics(path / "toy/metrics.jsonl")
    return [{name: value for name, value in row.items() if name != SPEED} for row in found]


def checkpoints(path: Path) -> list[str]:
    return sorted(os.listdir(path / "toy/checkpoints"))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_leaves_what_the_contract_says(tmp_path: Path) -> None:
    weights = fit(tmp_path)
    told = rows(tmp_path)
    steps = [row for row in told if row["kind"] == "step"]
    assert [(row["epoch"], row["step"]) for row in steps] == [(i // 5, i) for i in range(15)]
    names = {"kind", "epoch", "step", "loss", "ce", "lr", "grad_norm"}
    assert all(set(row) == names for row in steps)
    assert steps[3]["lr"] == 0.1 / 4
    epochs = [row for row in told if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    mean = sum(row["loss"] for row in steps[5:10]) / 5
    assert epochs[1]["loss"] == pytest.approx(mean, rel=1e-12)
    evals = [row for row in told if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [0, 1, 2] and evals[0]["images"] == 22
    assert checkpoints(tmp_path) == ["best.pth", "last.1.pth", "last.pth"]
    assert_same(load_weights(tmp_path / "toy/checkpoints/last.pth"), weights)


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    fit(tmp_path)
    scores = [row["acc1"] for row in rows(tmp_path) if row["kind"] == "eval"]
    best = load_file(tmp_path / "toy/checkpoints/best.pth")
    assert best["max_accuracy"] == max(scores)
    assert best["position"]["best_epoch"] == best["epoch"] == scores.index(max(scores))
    assert_same(load_weights(tmp_path / "toy/student.safetensors"), best["model"])


def test_intervals(tmp_path: Path) -> None:
    fit(
        tmp_path,
        replace(PLAN, evaluate_every=2, log_every=4, keep_every=2, keep_last=1, keep_best=False),
    )
    told = rows(tmp_path)
    assert [row["step"] for row in told if row["kind"] == "step"] == [0, 4, 8, 12]
    assert [row["epoch"] for row in told if row["kind"] == "eval"] == [1, 2]
    assert checkpoints(tmp_path) == ["epoch_0001.pth", "last.pth"]
    assert (tmp_path / "toy/student.safetensors").exists()


@pytest.mark.parametrize("stops", [[0], [4], [5], [7, 8], [14], [2, 4, 9, 13]], ids=str)
def test_stopped_by_signals_it_ends_in_the_same_bits(tmp_path: Path, stops: list[int]) -> None:
    expected = fit(tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Stopped, match=r"saved .*last\.pth") as caught:
            fit(tmp_path / "parts", at_step=signal_at(stop))
        assert caught.value.code == 143
        state = load_file(tmp_path / "parts/toy/checkpoints/last.pth")
        assert state["position"]["updates"] == stop + 1
    assert_same(fit(tmp_path / "parts"), expected)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


class PowerCut(Exception):
    """Nothing is saved on the way out."""


@pytest.mark.parametrize("saves", [{}, {"save_every_steps": 3}, {"save_every": 2}], ids=str)
@pytest.mark.parametrize("step", [1, 5, 12])
def test_after_a_crash_it_ends_in_the_same_bits(
    tmp_path: Path, step: int, saves: dict[str, int]
) -> None:
    plan = replace(PLAN, **saves)
    expected = fit(tmp_path / "whole", plan)

    def crash(now: int) -> None:
        if now == step:
            raise PowerCut

    with pytest.raises(PowerCut):
        fit(tmp_path / "parts", plan, crash)
    assert_same(fit(tmp_path / "parts", plan), expected)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_after_a_crash_while_evaluating_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole")

    def crash(stop: Callable[[], bool]) -> Accuracy:
        raise PowerCut

    with pytest.raises(PowerCut):
        fit(tmp_path / "parts", evaluate=crash)
    assert_same(fit(tmp_path / "parts"), expected)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_stopped_while_evaluating_it_measures_again_and_ends_in_the_same_bits(
    tmp_path: Path,
) -> None:
    expected = fit(tmp_path / "whole")

    def stopped(stop: Callable[[], bool]) -> Accuracy:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        raise EvaluationStopped

    with pytest.raises(Stopped, match="step 5 of 5") as caught:
        fit(tmp_path / "parts", evaluate=stopped)
    assert caught.value.code == 143
    assert not [row for row in rows(tmp_path / "parts") if row["kind"] == "eval"]
    assert_same(fit(tmp_path / "parts"), expected)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole", replace(PLAN, epochs=2))
    task = ToyTask()

    def poison(step: int) -> None:
        if step == 12:
            task.weight = float("nan")

    with pytest.raises(RunFailed, match="loss is nan at epoch 2, step 12"):
        fit(tmp_path / "bad", at_step=poison, task=task)
    state = load_file(tmp_path / "bad/toy/checkpoints/last.pth")
    assert state["position"]["updates"] == 10
    assert_same(state["model"], expected)


def test_a_checkpoint_says_what_it_belongs_to(tmp_path: Path) -> None:
    fit(tmp_path)
    state = load_file(tmp_path / "toy/checkpoints/last.pth")
    assert state["config"] == SETTINGS and state["rng"] == {"seed": SEED, "updates": 15}
    assert state["lr_scheduler"] == {"last": 14} and state["epoch"] == 2


def test_what_a_loop_says_of_itself_is_what_another_takes_up(tmp_path: Path) -> None:
    with toy(tmp_path / "a") as first, toy(tmp_path / "b", seed=6) as second:
        first.fit()
        second.load_state(first.state())
        assert second.position == first.position
        assert isinstance(second.schedule, Falling) and second.schedule.last == 14
        theirs, mine = second.state(), first.state()
    assert theirs.pop("rng")["seed"] == 6 and mine.pop("rng")["seed"] == SEED
    assert str(theirs) == str(mine)
    assert_same(theirs["model"], mine["model"])


def test_without_a_schedule_the_rate_is_the_optimizers(tmp_path: Path) -> None:
    fit(tmp_path, schedule=False)
    assert {row["lr"] for row in rows(tmp_path) if row["kind"] == "step"} == {1e-3}
    assert load_file(tmp_path / "toy/checkpoints/last.pth")["lr_scheduler"] is None
    with toy(tmp_path, schedule=False) as loop:
        assert loop.position.updates == 15


def test_the_way_back_may_be_handed_in(tmp_path: Path) -> None:
    fit(tmp_path, backward=lambda loss: (0 * loss).backward())
    steps = [row for row in rows(tmp_path) if row["kind"] == "step"]
    assert len(steps) == 15 and all(row["grad_norm"] == 0 < row["loss"] for row in steps)
