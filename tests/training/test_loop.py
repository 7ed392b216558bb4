"""The training loop on a toy: what it leaves, and that stops and crashes leave no trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.data.batches import TrainBatches
from srd.device import Precision
from srd.errors import RunFailed, Stopped
from srd.evaluation.accuracy import Accuracy
from srd.files.checkpoint import load_file, load_weights
from srd.run.folder import RunFolder
from srd.run.log import RunLog, read_metrics
from srd.training.loop import Backward, Loop, Losses, Plan

PLAN = Plan(epochs=3, batch_size=4, seed=5, log_every=1, clip_norm=1.0)  # 5 steps an epoch
SPEED = "images_per_second"


class Toy(Loop):
    """A linear classifier whose steps draw from the seed that they are given."""

    seeds: list[int]

    def __init__(self, path: Path, plan: Plan, at_step: Callable[[int], None]) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.images, self.targets = torch.randn(22, 3), torch.arange(22) % 2
        self.at_step, self.seeds = at_step, []
        batches = TrainBatches(22, plan.batch_size, plan.seed)
        folder = RunFolder(path, "toy")
        folder.prepare()
        found, _ = folder.find_resume()
        state = load_file(found) if found else None
        log = RunLog(folder.path, first_step=state["position"]["updates"] if state else 0)
        precision = Precision.choose("off", torch.device("cpu"))
        super().__init__(plan, self, batches, folder, log, precision, {"lr": 1}, {"model": "toy"})
        if state:
            self.load_state(state)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            rows = [index for _, index in batch]
            yield self.images[rows], self.targets[rows]

    def model(self) -> nn.Module:
        return self.network

    def start_epoch(self) -> None:
        self.network.train()

    def forward_pass(self, batch: Any, seed: int) -> tuple[Losses, Backward]:
        self.at_step(self.position.updates)
        self.seeds.append(seed)
        images, targets = batch
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        ce = F.cross_entropy(self.network(images + noise), targets)
        return {"loss": ce * self.weight(), "ce": ce}, Tensor.backward

    def weight(self) -> float:
        return 2.0

    def set_rate(self, updates: int) -> None:
        self.optimizer.param_groups[0]["lr"] = 0.1 / (1 + updates)

    def measure(self) -> Accuracy:
        with torch.no_grad():
            hits = (self.network(self.images).argmax(dim=1) == self.targets).float().mean()
        return Accuracy(100 * hits.item(), 100.0, 0.5, 22, 1.0)

    def learned(self) -> dict[str, Any]:
        return {"model": self.network.state_dict()}

    def load_learned(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])


def fit(
    path: Path, plan: Plan = PLAN, at_step: Callable[[int], None] = lambda step: None
) -> dict[str, Tensor]:
    """Train, from where `path` was left; returns the weights."""
    toy = Toy(path, plan, at_step)
    try:
        toy.fit()
    finally:
        toy.log.close()
    return toy.network.state_dict()


def test_every_step_has_a_seed_of_its_own(tmp_path: Path) -> None:
    def seeds(name: str, seed: int) -> list[int]:
        toy = Toy(tmp_path / name, replace(PLAN, seed=seed), lambda step: None)
        toy.fit()
        toy.log.close()
        return toy.seeds

    first = seeds("a", 5)
    assert len(set(first)) == 15
    assert seeds("b", 5) == first and not set(seeds("c", 6)) & set(first)


def test_the_end_of_an_epoch_is_told_to_the_half(tmp_path: Path) -> None:
    ends: list[float | None] = []

    class Told(Toy):
        def end_epoch(self, accuracy: Accuracy | None) -> None:
            ends.append(accuracy.acc1 if accuracy else None)

    toy = Told(tmp_path, replace(PLAN, epochs=4, evaluate_every=2), lambda step: None)
    toy.fit()
    toy.log.close()
    evals = [row["acc1"] for row in rows(tmp_path) if row["kind"] == "eval"]
    assert len(evals) == 2 and ends == [None, evals[0], None]


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

        def send(step: int, stop: int = stop) -> None:
            if step == stop:
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Stopped, match=r"saved .*last\.pth") as caught:
            fit(tmp_path / "parts", at_step=send)
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


def test_after_a_crash_while_evaluating_it_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(PowerCut):

        def crash(toy: Toy) -> Accuracy:
            raise PowerCut

        patch.setattr(Toy, "measure", crash)
        fit(tmp_path / "parts")
    assert_same(fit(tmp_path / "parts"), expected)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit(tmp_path / "whole", replace(PLAN, epochs=2))

    def poison(step: int) -> None:
        if step == 12:
            monkeypatch.setattr(Toy, "weight", lambda _: float("nan"))

    with pytest.raises(RunFailed, match="loss is nan at epoch 2, step 12"):
        fit(tmp_path / "bad", at_step=poison)
    state = load_file(tmp_path / "bad/toy/checkpoints/last.pth")
    assert state["position"]["updates"] == 10
    assert_same(state["model"], expected)
