"""States are copied at once and written behind the run's back; nothing is lost, and errors come."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srd.errors import RunFailed
from srd.files.checkpoint import load_file, save_state
from srd.run.saver import Saver


def test_what_changes_after_a_save_is_not_in_it(tmp_path: Path) -> None:
    saver, gate = Saver(), threading.Event()
    weights, plain = torch.ones(3), {"epochs": [1, 2], "rate": 0.5}
    path = tmp_path / "state.pth"

    def write(state: Any) -> None:
        assert gate.wait(10)
        save_state(path, state)

    saver.save({"model": {"w": weights}, "plain": plain}, write)
    weights.zero_()
    plain["epochs"].append(3)
    assert not path.exists()  # it went on before anything was written
    gate.set()
    saver.wait()
    state = load_file(path)
    assert state["model"]["w"].tolist() == [1, 1, 1]
    assert state["plain"] == {"epochs": [1, 2], "rate": 0.5}


def test_a_file_is_what_it_would_be_without_a_thread(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.BatchNorm1d(30), nn.Linear(30, 30))
    model[2].weight = model[0].weight  # tied
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "none": None}
    saver = Saver()
    for name in ("first", "second"):  # the second in the room of the first
        saver.save(state, lambda state, name=name: save_state(tmp_path / name, state))
        saver.wait()
    save_state(tmp_path / "alone", state)
    sizes = [(tmp_path / name).stat().st_size for name in ("first", "second", "alone")]
    assert sizes[0] == sizes[1] <= sizes[2] + 64  # tied weights are written once
    for name in ("first", "second"):
        torch.testing.assert_close(load_file(tmp_path / name), load_file(tmp_path / "alone"))


def test_the_copies_stay_where_they_are_and_keep_their_types() -> None:
    saver, seen = Saver(), []
    state: dict[str, Any] = {"model": OrderedDict(w=torch.ones(2, 3).t()), "pair": (1, [2])}
    state["model"]._metadata = {"version": 1}
    for _ in range(2):
        saver.save(state, seen.append)
        saver.wait()
    first, second = seen
    assert first["model"]["w"].data_ptr() == second["model"]["w"].data_ptr()
    assert first["model"]["w"].data_ptr() != state["model"]["w"].data_ptr()
    assert first["model"]["w"].stride() == (1, 3)
    assert type(first["model"]) is OrderedDict and first["model"]._metadata == {"version": 1}
    assert first["pair"] == (1, [2])


def test_saves_come_one_after_the_other() -> None:
    saver, order = Saver(), []
    for number in range(5):
        saver.save({"number": number}, lambda state: order.append(state["number"]))
    saver.wait()
    assert order == [0, 1, 2, 3, 4]


def fail(state: Any) -> None:
    raise RunFailed("cannot write")


@pytest.mark.parametrize("call", ["save", "check", "wait"])
def test_an_error_is_raised_once_by_the_call_after(call: str) -> None:
    saver = Saver()
    saver.save({}, fail)
    while saver._thread.is_alive():
        pass
    arguments = ({}, lambda state: None) if call == "save" else ()
    with pytest.raises(RunFailed, match="cannot write"):
        getattr(saver, call)(*arguments)
    saver.wait()


def test_leaving_waits_and_tells() -> None:
    gate, saver, done = threading.Event(), Saver(), []
    threading.Timer(0.05, gate.set).start()
    with saver.finishing():
        saver.save({}, lambda state: (gate.wait(10), done.append(1)))
        saver.check()  # does not wait
        assert not done
    assert done == [1]
    with pytest.raises(RunFailed), saver.finishing():
        saver.save({}, fail)
    with pytest.raises(KeyError), saver.finishing():
        saver.save({}, fail)
        raise KeyError
