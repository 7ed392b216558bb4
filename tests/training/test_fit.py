"""A checkpoint that a run cannot go on from: passed over for the one before, or refused by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srd.errors import UserError
from srd.files.checkpoint import load_file, save_state
from srd.run.state import Misfit, check_like
from srd.training.fit import check_fits
from tests.training.test_loop import make_loop
from tests.training.test_session import opened, stop, train

Change = Callable[[dict[str, Any]], object]
NAN, INF = float("nan"), float("inf")


def put(*place: Any, value: Any) -> Change:
    """A change that puts a value into a state, at a place in its containers."""

    def change(state: dict[str, Any]) -> None:
        inner: Any = state
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return change


def without(*place: Any) -> Change:
    def change(state: dict[str, Any]) -> None:
        inner: Any = state
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]

    return change


# What was done to a checkpoint of a run stopped after 8 updates (epoch 1, step 3), and the field named.
BAD: list[tuple[Change, str]] = [
    (put("config", value=None), "not a checkpoint of a run"),
    (without("position"), "not a checkpoint of a run"),
    *((put("position", value=v), "position") for v in (None, 3, "x", [], {})),
    *((without("position", name), f"position.{name}") for name in ("epoch", "step", "updates")),
    (put("position", "more", value=1), "position.more"),
    *((put("position", "epoch", value=v), "position.epoch")
      for v in (None, -1, 1.0, "1", True, 3, 10**9, NAN, [1], torch.tensor(1))),
    *((put("position", "step", value=v), "position.step") for v in (None, -1, 6)),
    *((put("position", "updates", value=v), "position.updates") for v in (-1, 9, "8")),
    *((put("position", "best_acc1", value=v), "position.best_acc1")
      for v in (NAN, INF, 1e6, -2.0, "high", None)),
    *((put("position", "best_epoch", value=v), "position.best_epoch") for v in (-2, 2, 0.5)),
    *((put("position", "seconds", value=v), "position.seconds") for v in (-1.0, INF, 1e308, None)),
    *((put("position", name, value=10**400), f"position.{name}") for name in ("epoch", "seconds")),
    (put("position", "sums", "loss", value=10**400), "position.sums.loss"),
    (put("optimizer", "param_groups", 0, "lr", value=10**400), "optimizer.param_groups.0.lr"),
    (put("config", "identity", 1, value=2), "config.identity has the key 1"),
    (put("config", "identity", "model", value=torch.zeros(2)), "config.identity.model is a Tensor"),
    *((put("position", "sums", value=v), "position.sums") for v in (None, {}, [1.0], {"loss": NAN})),
    (put("position", "sums", "loss", value="a"), "position.sums.loss"),
    *((put("model", value=v), "model") for v in (None, {}, [], torch.zeros(3))),
    (without("model"), "model"),
    (without("model", "bias"), "model.bias"),
    (put("model", "more", value=torch.zeros(1)), "model.more"),
    *((put("model", "weight", value=v), "model.weight")
      for v in (torch.zeros(3, 2), torch.full((2, 3), NAN), torch.full((2, 3), INF), 1.0, None,
                torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.complex64))),
    *((without(name), name) for name in ("optimizer", "scaler", "lr_scheduler")),
    *((put("optimizer", value=v), "optimizer") for v in (None, {}, "a", {"state": {}})),
    *((put("optimizer", "state", value=v), "optimizer.state")
      for v in (None, [], {}, {7: {}}, {"a": {}}, {0: None}, {0: 1})),
    (put("optimizer", "state", 0, "exp_avg", value=torch.zeros(3, 2)), "optimizer.state"),
    (put("optimizer", "state", 0, "exp_avg", value=torch.full((2, 3), NAN)),
     "optimizer.state.0.exp_avg"),
    (put("optimizer", "state", 0, "exp_avg", value="a"), "optimizer.state"),
    *((put("optimizer", "param_groups", value=v), "optimizer.param_groups")
      for v in (None, [], [None], [{}])),
    *((put("optimizer", "param_groups", 0, "lr", value=v), "optimizer.param_groups.0.lr")
      for v in (None, "a", NAN, INF, -1.0)),
    *((put("optimizer", "param_groups", 0, "params", value=v), "optimizer.param_groups.0.params")
      for v in (None, [], [0], "ab")),
    *((put("scaler", value=v), "scaler") for v in (None, "a", [1])),
    *((put("lr_scheduler", value=v), "lr_scheduler") for v in (None, 3, {}, {"last": NAN})),
    (put("lr_scheduler", "last", value="a"), "lr_scheduler.last"),
    (put("optimizer", "param_groups", 0, "maximize", value="no"), "param_groups.0.maximize"),
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped after 8 updates, which left `last.pth` and, of its first epoch, `last.1.pth`."""
    path = tmp_path_factory.mktemp("stopped")
    stop(path, 7)
    return path


def with_bad_last(stopped: Path, path: Path, change: Change) -> Path:
    """A copy of the run, its last checkpoint changed."""
    for name in ("last.pth", "last.1.pth", "best.pth"):
        state = load_file(stopped / "toy/checkpoints" / name)
        if name == "last.pth":
            change(state)
        save_state(path / "toy/checkpoints" / name, state)
    return path / "toy/checkpoints/last.pth"


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_checkpoint_is_passed_over_and_told(
    stopped: Path, tmp_path: Path, number: int
) -> None:
    change, field = BAD[number]
    last = with_bad_last(stopped, tmp_path, change)
    before = last.read_bytes()
    loop = train(tmp_path)
    assert loop.position.updates == 15
    log = (tmp_path / "toy/log.txt").read_text()
    assert re.search(
        rf"last\.pth is damaged \([^\n]*{re.escape(field)}[^\n]*passed over for", log
    ), log
    assert last.with_name("last.pth.damaged").read_bytes() == before


@pytest.mark.parametrize("number", range(0, len(BAD), 4))
def test_a_bad_checkpoint_that_was_named_is_refused(
    stopped: Path, tmp_path: Path, number: int
) -> None:
    change, field = BAD[number]
    last = with_bad_last(stopped, tmp_path / "other", change)
    with pytest.raises(
        UserError, match=rf"last\.pth cannot be resumed: .*{re.escape(field)}"
    ) as told:
        goes_on(tmp_path, last)
    assert "\n" not in str(told.value)


def goes_on(path: Path, checkpoint: Path) -> None:
    with opened(path, resume=str(checkpoint)) as session:
        assert session is not None
        session.start(make_loop(session.folder, session.log, settings=session.saved_with))


def test_a_bad_checkpoint_without_another_is_refused(stopped: Path, tmp_path: Path) -> None:
    last = with_bad_last(stopped, tmp_path, put("model", "weight", value=torch.zeros(1)))
    for other in ("last.1.pth", "best.pth"):
        last.with_name(other).unlink()
    with pytest.raises(UserError, match=r"model\.weight is \(1,\) .*--resume none starts anew"):
        train(tmp_path)
    assert last.is_file()


def test_what_goes_on_from_the_one_before_ends_in_the_same_bits(
    stopped: Path, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole")
    with_bad_last(stopped, tmp_path / "parts", put("model", "bias", value=torch.full((2,), NAN)))
    parts = train(tmp_path / "parts")
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(value, parts.task.model.state_dict()[name])
    assert parts.state()["optimizer"]["state"].keys() == whole.state()["optimizer"]["state"].keys()


def test_a_schedule_takes_up_what_it_knows(stopped: Path, tmp_path: Path) -> None:
    """torch's and timm's write whatever they are given over their own methods."""
    with_bad_last(stopped, tmp_path, put("lr_scheduler", "step", value=5))
    loop = train(tmp_path)
    assert loop.position.updates == 15 and "step" not in vars(loop.schedule)


def test_a_check_takes_nothing_up(stopped: Path, tmp_path: Path) -> None:
    state = load_file(stopped / "toy/checkpoints/last.pth")
    saved = copy.deepcopy(state)
    with opened(tmp_path) as session:
        assert session is not None
        loop = make_loop(session.folder, session.log, settings=session.saved_with)
        before = copy.deepcopy(loop.state())
        check_fits(loop, state)
        after = loop.state()
    for one, other in ((before, after), (saved, state)):
        check_like(one["optimizer"], other["optimizer"], "optimizer")
        assert torch.equal(one["model"]["weight"], other["model"]["weight"])
    moments = [each["optimizer"]["state"][0]["exp_avg"] for each in (saved, state)]
    assert torch.equal(*moments) and not after["optimizer"]["state"]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested containers, settings left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        if (*at, key) != ("config",):
            found.append((*at, key))
            if isinstance(item, (dict, list)):
                found += places(item, (*at, key))
    return found


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 20), st.floats(), st.text(max_size=3),
    st.integers(-(2**63), 2**63 - 1), st.just([]), st.just({}), st.just({"a": 1}), st.just([1.0]),
    st.sampled_from([(), (1,), (2,), (3,), (2, 3), (3, 2), (0,)]).map(torch.zeros),
    st.sampled_from([(2,), (2, 3)]).map(lambda shape: torch.full(shape, NAN)),
)  # fmt: skip


@pytest.mark.slow
def test_no_state_ends_in_a_traceback(stopped: Path, tmp_path: Path) -> None:
    """Thousands of changed states: taken up and trained with for a step, or refused by a Misfit."""
    good = load_file(stopped / "toy/checkpoints/last.pth")
    counts = {"refused": 0, "taken": 0}

    @settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.sampled_from(places(good)), SCALARS | st.just("delete")),
                    min_size=1, max_size=2))  # fmt: skip
    def run(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        state = copy.deepcopy(good)
        for place, value in changes:
            try:
                (without(*place) if value == "delete" else put(*place, value=value))(state)
            except (
                TypeError,
                KeyError,
                IndexError,
                RuntimeError,
            ):  # an earlier change took its place
                continue
        save_state(tmp_path / "last.pth", state)
        try:
            goes_on_for_a_step(tmp_path)
        except (UserError, Misfit):
            counts["refused"] += 1
        else:
            counts["taken"] += 1

    run()
    assert counts["refused"] > 1000 and counts["taken"] > 10, counts


def goes_on_for_a_step(path: Path) -> None:
    with opened(path / "run", resume=str(path / "last.pth")) as session:
        assert session is not None
        loop = make_loop(session.folder, session.log, settings=session.saved_with)
        session.start(loop)
        loop.data.batches.start_at(loop.position.epoch, loop.position.step)
        for batch in loop.data.loader if loop.position.step < loop.steps else ():
            loss = loop.task.losses(loop.data.prepare(batch, loop.position.updates), 0)["loss"]
            loss.backward()
            loop.optimizer.step()
            break
