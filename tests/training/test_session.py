"""A session: one run's folder from the lock to the result, and where the run goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from srd.device import Precision
from srd.errors import RunFailed, Stopped, UserError
from srd.evaluation.accuracy import Accuracy
from srd.files.checkpoint import load_file, save_state
from srd.run.folder import RunFolder
from srd.run.log import read_metrics
from srd.training.loop import Loop
from srd.training.session import Identity, Session, open_session
from tests.training.test_loop import PLAN, ToyTask, make_loop, signal_at

RECIPE = {"optim": {"lr": 0.1}, "device": "cpu"}
IDENTITY = Identity(model="toy", train_images=22)
MEASURED = Accuracy(acc1=75.0, acc5=100.0, loss=0.5, images=8, images_per_second=2.0)


def opened(
    path: Path, identity: Identity = IDENTITY, **changed: Any
) -> AbstractContextManager[Session | None]:
    arguments: dict[str, Any] = {"settings": RECIPE, "not_recipe": ("device",), "resume": "auto"}
    return open_session(RunFolder(path, "toy"), identity, **{**arguments, **changed})


def train(path: Path, teacher: Callable[[], Accuracy] | None = None, **changed: Any) -> Loop:
    """A run from its start, or from where it was, to its result."""
    with opened(path) as session:
        assert session is not None
        loop = make_loop(session.folder, session.log, settings=session.saved_with, **changed)
        session.start(loop, measure_teacher=teacher)
        precision = Precision.choose("off", torch.device("cpu"))
        session.finish(loop, loop.fit(), plan=PLAN, precision=precision, about={"dataset": "toys"})
        return loop


def stop(path: Path, step: int) -> None:
    """A run that a signal stops in the middle of a step."""
    with pytest.raises(Stopped, match="saved"):
        train(path, at_step=signal_at(step))


def files(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below with its content and the time of its last change."""
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): (f.read_bytes(), f.stat().st_mtime_ns) for f in found}


def is_locked(path: Path) -> bool:
    return (path / "toy/.lock").exists()


def test_a_new_run_has_its_folder_to_itself(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        assert session is not None and session.state is None and is_locked(tmp_path)
        assert yaml.safe_load(session.folder.config.read_text()) == RECIPE
        session.log.info("hello")
    assert not is_locked(tmp_path)
    assert (tmp_path / "toy/log.txt").read_text().endswith(" hello\n")


def test_a_checkpoint_says_its_settings_and_its_identity(tmp_path: Path) -> None:
    train(tmp_path)
    config = load_file(tmp_path / "toy/checkpoints/last.pth")["config"]
    assert config == {**RECIPE, "identity": asdict(IDENTITY)}


def test_the_result_says_what_was_run_and_what_came_out(tmp_path: Path) -> None:
    loop = train(tmp_path)
    result = json.loads((tmp_path / "toy/result.json").read_text())
    evals = read_metrics(tmp_path / "toy/metrics.jsonl", "eval")
    expected = {
        **asdict(IDENTITY),
        "dataset": "toys",
        **{name: evals[-1][name] for name in ("acc1", "acc5", "loss", "images")},
        "best_acc1": max(row["acc1"] for row in evals),
        "best_epoch": loop.position.best_epoch,
        "epochs": 3,
        "updates": 15,
        "images_trained": 60,
        "device": "cpu",
        "precision": "float32",
        "processes": 1,
    }
    assert {name: result[name] for name in expected} == expected
    assert set(result) == {*expected, "seconds", "command", "versions", "git_commit"}
    assert f"everything is in {tmp_path / 'toy'}" in (tmp_path / "toy/log.txt").read_text()


@pytest.mark.parametrize("step", [0, 4, 7, 14])
def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path, step: int) -> None:
    whole = train(tmp_path / "whole")
    stop(tmp_path / "parts", step)
    with opened(tmp_path / "parts") as session:
        assert session is not None and session.state is not None
        assert session.state["position"]["updates"] == step + 1
    parts = train(tmp_path / "parts")
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(value, parts.task.model.state_dict()[name])
    assert replace(parts.position, seconds=0) == replace(whole.position, seconds=0)


def test_a_finished_run_is_told_and_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = train(tmp_path)
    before, done = files(tmp_path / "toy"), json.loads((tmp_path / "toy/result.json").read_text())
    capsys.readouterr()
    with opened(tmp_path, settings={**RECIPE, "device": "cuda"}) as session:
        assert session is None
    told = capsys.readouterr()
    scores = f"acc1 {done['acc1']:.2f}, best {loop.position.best_acc1:.2f}"
    assert told.out == f"already finished: {scores}; see {tmp_path / 'toy'}\n" and told.err == ""
    assert files(tmp_path / "toy") == before


def test_a_finished_run_of_another_recipe_is_refused_all_the_same(tmp_path: Path) -> None:
    train(tmp_path)
    with (
        pytest.raises(UserError, match=r"optim\.lr: 0\.1 -> 0\.2"),
        opened(tmp_path, settings={**RECIPE, "optim": {"lr": 0.2}}),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"identity\.train_images: 22 -> 23"),
        opened(tmp_path, replace(IDENTITY, train_images=23)),
    ):
        pass
    assert not is_locked(tmp_path)


def test_a_finished_run_may_begin_anew(tmp_path: Path) -> None:
    train(tmp_path)
    with opened(tmp_path, resume="none") as session:
        assert session is not None and session.state is None
    assert (tmp_path / "toy.1/result.json").exists()
    assert not (tmp_path / "toy/result.json").exists()


@pytest.mark.parametrize(
    "error", [UserError("no"), RunFailed("bad"), KeyboardInterrupt(), OSError()]
)
def test_the_lock_is_released_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), opened(tmp_path) as session:
        assert session is not None and is_locked(tmp_path)
        session.log.info("before")
        raise error
    assert not is_locked(tmp_path)
    with pytest.raises(ValueError, match="closed file"):
        session.log.info("after")


def test_the_lock_is_released_where_the_log_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the log"):
        opened(tmp_path, copy_to=tmp_path / "file/log.txt").__enter__()
    assert (tmp_path / "toy").is_dir() and not is_locked(tmp_path)


def test_lines_of_the_log_may_be_copied(tmp_path: Path) -> None:
    with opened(tmp_path, copy_to=tmp_path / "logs/run.txt") as session:
        assert session is not None
        session.log.info("hello")
    copy = (tmp_path / "logs/run.txt").read_text()
    assert copy == (tmp_path / "toy/log.txt").read_text() and "hello" in copy


def test_damaged_checkpoints_are_told_in_the_log(tmp_path: Path) -> None:
    stop(tmp_path, 7)
    last = tmp_path / "toy/checkpoints/last.pth"
    last.write_bytes(last.read_bytes()[:-20])
    with opened(tmp_path) as session:
        assert session is not None and session.state is not None
    assert f"{last} is damaged" in (tmp_path / "toy/log.txt").read_text()


def test_the_teacher_is_measured_at_the_very_start_alone(tmp_path: Path) -> None:
    measured: list[int] = []

    def teacher() -> Accuracy:
        measured.append(1)
        return MEASURED

    with pytest.raises(Stopped):
        train(tmp_path, teacher, at_step=signal_at(3))
    train(tmp_path, teacher)
    assert len(measured) == 1
    first, *others = read_metrics(tmp_path / "toy/metrics.jsonl", "eval")
    teachers = {"kind": "eval", "model": "teacher", "epoch": 0, "step": 0}
    assert first == {**teachers, "acc1": 75.0, "acc5": 100.0, "loss": 0.5, "images": 8}
    assert len(others) == 3 and not any("model" in row for row in others)


def test_the_state_is_what_a_loop_takes_up(tmp_path: Path) -> None:
    """A run may go on from another's file; what it takes up is all that the file holds."""
    stop(tmp_path / "a", 6)
    file = tmp_path / "a/toy/checkpoints/last.pth"
    with opened(tmp_path / "b", resume=str(file)) as session:
        assert session is not None
        task = ToyTask()
        loop = make_loop(session.folder, session.log, settings=session.saved_with, task=task)
        session.start(loop)
        state = loop.state()
    saved = load_file(file)
    assert state.keys() == saved.keys()
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    for name in ("position", "rng", "lr_scheduler", "scaler", "config", "epoch", "max_accuracy"):
        assert state[name] == saved[name], name
    moments, expected = state["optimizer"]["state"], saved["optimizer"]["state"]
    for number, values in expected.items():
        assert all(torch.equal(moments[number][name], value) for name, value in values.items())


def test_settings_of_an_earlier_version_are_upgraded(tmp_path: Path) -> None:
    stop(tmp_path, 6)
    last = tmp_path / "toy/checkpoints/last.pth"
    state = load_file(last)
    state["config"] = {"rate": 0.1, "device": "cpu", "identity": state["config"]["identity"]}
    save_state(last, state)

    def upgrade(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"optim": {"lr": settings["rate"]}, "device": settings["device"]}

    with opened(tmp_path, upgrade=upgrade) as session:
        assert session is not None and session.state is not None
    with pytest.raises(UserError, match=r"rate: 0\.1 -> None"), opened(tmp_path):
        pass


def test_a_checkpoint_whose_identity_says_less_goes_on(tmp_path: Path) -> None:
    """Earlier versions of the ResNet half wrote what it knows, and nothing else."""
    knows = {"model": "toy", "teacher": "big", "train_images": 22, "seed": 3, "lr_factor": 1}
    identity = Identity(**knows, class_names=["a", "b"])
    with opened(tmp_path, identity) as session:
        assert session is not None
        with pytest.raises(Stopped):
            make_loop(
                session.folder, session.log, PLAN, signal_at(6), settings=session.saved_with
            ).fit()
    last = tmp_path / "toy/checkpoints/last.pth"
    state = load_file(last)
    state["config"]["identity"] = knows
    save_state(last, state)
    with opened(tmp_path, identity) as session:
        assert session is not None and session.state is not None
    with (
        pytest.raises(UserError, match=r"identity\.lr_factor: 1 -> 2"),
        opened(tmp_path, replace(identity, lr_factor=2)),
    ):
        pass


def test_the_configuration_may_be_kept_as_it_was_written(tmp_path: Path) -> None:
    with opened(tmp_path, config_text="# mine\noptim: {lr: 1e-1}\n"):
        pass
    assert (tmp_path / "toy/config.yaml").read_text() == "# mine\noptim: {lr: 1e-1}\n"


def as_earlier(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as earlier versions saved them: AdamW alone, and srd's fields beside every method."""
    optim = dict(settings["optim"])
    for later in ("name", "momentum", "decay_all", "schedule", "decay_epochs", "decay_rate"):
        del optim[later]
    assert optim["betas"] == [0.9, 0.999] and optim["eps"] == 1e-8
    distill = dict(settings["distill"])
    loss = distill.pop("loss")
    own = {"match": "correlation", "alpha": 4.0, "bn_eps": None, "log_eps": None}
    own |= {name: value for name, value in loss.items() if name in own}
    return {**settings, "optim": optim, "distill": {"method": loss["name"], **own, **distill}}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "method", ["srd", *(pytest.param(m, marks=pytest.mark.slow) for m in ("kd", "none"))]
)
def test_a_run_that_an_earlier_version_began_goes_on_to_the_same_bits(
    tmp_path: Path,
    method: str,
    recipe: Path,
    deit: Callable[..., Any],
    strike: Callable[[Callable[[], None], int], None],
    open_run: Callable[[Path], Any],
) -> None:
    arguments = ["--train_student", f"--config={recipe}", f"--output={tmp_path}"]
    arguments += [f"--distillation={method}"]
    assert deit(*arguments, "--name=whole").code == 0
    strike(lambda: signal.raise_signal(signal.SIGTERM), 7)
    assert deit(*arguments, "--name=parts").code == 143
    last = tmp_path / "parts/checkpoints/last.pth"
    state = load_file(last)
    identity = {name: value for name, value in state["config"].pop("identity").items() if value}
    state["config"] = {**as_earlier(state["config"]), "identity": identity}
    save_state(last, state)
    changed = deit(*arguments, "--name=parts", "--set=optim.weight_decay=0.1")
    assert changed.code == 2 and "(optim.weight_decay: 0.05 -> 0.1)" in changed.err
    assert deit(*arguments, "--name=parts").code == 0
    open_run(tmp_path / "parts").assert_same(open_run(tmp_path / "whole"))
