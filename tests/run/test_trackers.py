"""Trackers: each through its own library, offline; and what a training does when one fails."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from srd.errors import UserError
from srd.run import trackers, tracking
from srd.run.log import RunLog
from srd.run.trackers import TRACKERS, Known, Row, check_tracker, read_id
from srd.run.tracking import Tracking

SETTINGS = {"optim": {"lr": 0.25}, "!import": "x"}


class Heard:
    """A tracker of the tests: it keeps what it is sent, and fails where it is told to."""

    id = "one"
    rows: list[Row]
    started: list[str | None]
    result: Mapping[str, Any] | None
    fails: str

    def __init__(self, name: str, settings: Any, folder: Path, id: str | None) -> None:
        Heard.started.append(id)
        if Heard.fails == "start":
            raise ConnectionError("no network")

    def log(self, rows: Sequence[Row]) -> None:
        if Heard.fails == "log":
            raise ConnectionError("no network")
        Heard.rows += rows

    def finish(self, result: Mapping[str, Any] | None) -> None:
        Heard.result = result
        if Heard.fails == "finish":
            threading.Event().wait()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> type[Heard]:
    Heard.rows, Heard.started, Heard.result, Heard.fails = [], [], None, ""
    monkeypatch.setitem(TRACKERS, "heard", Known(Heard, "heard", "json", "be kind"))
    return Heard


def tell(folder: Path, name: str, steps: Sequence[int], result: Any = None) -> None:
    """A life of a run that logs some steps."""
    log = RunLog(folder, first_step=steps[0], tracking=Tracking(name, folder, SETTINGS))
    for step in steps:
        log.row("step", {"epoch": 0, "step": step, "loss": step / 2, "names": [1.0], "lr": None})
    if result is not None:
        log.result(result)
    log.close()


def test_an_unknown_or_missing_tracker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--track: unknown tracker 'wanbd' \(did you mean 'wandb'"):
        check_tracker("wanbd")
    monkeypatch.setitem(TRACKERS, "far", Known(Heard, "far", "no_such_package", ""))
    with pytest.raises(
        UserError, match=r"--track far need no_such_package: pip install '.*\[far\]'"
    ):
        check_tracker("far")


def test_a_stopped_run_goes_on_as_the_same_run(heard: type[Heard], tmp_path: Path) -> None:
    tell(tmp_path, "heard", [0, 1])
    assert heard.result is None
    tell(tmp_path, "heard", [2], {"acc1": 50.0})
    assert heard.started == [None, "one"] and read_id(tmp_path, "heard") == "one"
    numbers = {"step/epoch": 0, "step/loss": 0.5}
    assert heard.rows[1] == Row(1, numbers) and [row.step for row in heard.rows] == [0, 1, 2]
    assert heard.result == {"acc1": 50.0}


@pytest.mark.parametrize(
    "text", ["[" * 10_000, '["a"]', '{"heard": "../x"}', '{"heard": "\\u001b"}']
)
def test_what_a_run_is_known_by_is_a_plain_name(tmp_path: Path, text: str) -> None:
    (tmp_path / trackers.ID).write_text(text)
    assert read_id(tmp_path, "heard") is None


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_what_fails_on_the_way_is_told_once(
    fails: str,
    heard: type[Heard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / trackers.ID).write_text('{"heard": "one"}')  # it has been started before
    monkeypatch.setattr(tracking, "SECONDS", 0.1)
    heard.fails = fails
    tell(tmp_path, "heard", range(9))
    said = "it did not take all" if fails == "finish" else "no network"
    assert capsys.readouterr().err.count(f"warning: --track heard: {said}") == 1
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 9


def test_a_slow_one_loses_rows_and_holds_nothing_up(
    heard: type[Heard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes = threading.Event()
    monkeypatch.setattr(heard, "log", lambda self, rows: goes.wait())
    monkeypatch.setattr(tracking, "MOST_WAITING", 3)
    at_work = Tracking("heard", tmp_path, SETTINGS)
    for step in range(9):
        at_work.row("step", {"step": step})
    goes.set()
    assert "too slow" in str(at_work.news()) and at_work.news() is None
    at_work.close(None)


def test_a_training_sends_its_settings_and_result(
    heard: type[Heard], recipe: Path, tmp_path: Path, deit: Callable[..., Any]
) -> None:
    line = ["--train-student", "--config", recipe, "--output", tmp_path, "--track", "heard"]
    line += ["--model", "test_resnet", "--distillation", "none", "--epochs", 1, "--name"]
    heard.fails = "start"
    failed = deit(*line, "failed")
    assert failed.code == 2 and "error: --track heard: no network; be kind" in failed.err
    heard.fails = ""
    assert deit(*line, "done", "--warmup-epochs", 0).code == 0
    assert heard.result and heard.result["seed"] == 0 and "acc1" in heard.result
    kinds = {name.split("/")[0] for row in heard.rows for name in row.numbers}
    assert kinds == {"step", "epoch", "eval"}


LIFE = """
import sys
from pathlib import Path
from tests.run import test_trackers as t
folder, name = Path(sys.argv[1]), sys.argv[2]
t.tell(folder, name, [0, 1])
known = t.read_id(folder, name)
t.tell(folder, name, [2], {"acc1": 62.5})
assert known and known == t.read_id(folder, name)
"""
READ = """
import sys
from pathlib import Path
from tests.run import test_trackers as t
print(getattr(t, f"read_{sys.argv[2]}")(Path(sys.argv[1])))
"""


def read_wandb(folder: Path) -> str:
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return ascii(b"".join(file.read_bytes() for file in files).decode("latin-1"))


def read_mlflow(folder: Path) -> str:
    from mlflow import MlflowClient

    client, id = MlflowClient(), str(read_id(folder, "mlflow"))
    run = client.get_run(id)
    curve = {point.step: point.value for point in client.get_metric_history(id, "step/loss")}
    return f"{run.info.run_name} {run.info.status} {run.data.params} {run.data.tags} {curve}"


def read_trackio(folder: Path) -> str:
    from trackio.sqlite_storage import SQLiteStorage as Storage

    return f"{Storage.get_run_config('srd', folder.name)} {Storage.get_logs('srd', folder.name)}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kept",
    [
        ("wandb", ["mine", '{"lr":0.25}', r"step/loss\x82\x01\x011", "result/acc1", "62.5"]),
        ("mlflow", ["mine FINISHED", "'optim.lr': '0.25'", "'62.5'", "{0: 0.0, 1: 0.5, 2: 1.0}"]),
        ("trackio", ["'optim.lr': 0.25", "'step/loss': 1.0", "'result/acc1': 62.5"]),
    ],
)
def test_the_real_library_offline(
    name: str,
    kept: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_python: Callable[..., str],
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[{name}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    (folder := tmp_path / "mine").mkdir()
    run_python("-c", LIFE, folder, name)
    found = run_python("-c", READ, folder, name)  # when all has been written
    assert [text for text in kept if text not in found] == [], found[-3000:]
