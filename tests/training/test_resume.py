"""Nothing is lost: a run that is stopped, or killed, ends in the same bits as one that was not.

Six steps an epoch, two epochs. `undisturbed` is the run that everything is compared with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deit import main
from srd.errors import EXIT_SIGTERM
from srd.run.log import Bar
from tests.narrow import narrow

ROOT = Path(__file__).resolve().parents[2]

# Runs the command line on a narrow student, and sends this process a signal in one of its steps.
STRUCK = """
import os, sys
import torch
from srd.data import augment
from deit import main
from srd.errors import exit_code
from tests.narrow import narrow

at, number = int(sys.argv[1]), int(sys.argv[2])
mix = augment.Mix.__call__

def struck(self, images, targets, step):
    if step == at:
        os.kill(os.getpid(), number)
    return mix(self, images, targets, step)

augment.Mix.__call__ = struck
torch.set_num_threads(1)
with narrow():
    sys.exit(exit_code(lambda: main.run(sys.argv[3:])))
"""


def arguments(recipe: Path, output: Path, *more: str) -> list[str]:
    return [
        "--train_student",
        f"--config={recipe}",
        f"--output={output}",
        "--name=run",
        "--set=data.eval_batch_size=5",
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, open_run: Callable[[Path], Any]
) -> Any:
    output = tmp_path_factory.mktemp("undisturbed")
    with narrow():
        main.run(arguments(recipe, output))
    return open_run(output / "run")


def python(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A Python process on this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *map(str, command)]
    return subprocess.run(
        line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200
    )


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "step", [2, *(pytest.param(at, marks=pytest.mark.slow) for at in (0, 5, 11))]
)
def test_stopped_by_sigterm_it_ends_in_the_same_bits(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, undisturbed: Any, step: int
) -> None:
    strike(sigterm, step)
    stopped = deit(*arguments(recipe, tmp_path))
    run = open_run(tmp_path / "run")
    assert stopped.code == EXIT_SIGTERM == 143 and "saved" in stopped.err
    assert run.state()["position"]["updates"] == step + 1  # the step under way is finished
    assert run.state()["position"]["step"] == step % 6 + 1
    assert not (run.path / "result.json").exists()
    resumed = deit(*arguments(recipe, tmp_path))
    assert resumed.code == 0 and "resuming" in resumed.err
    run.assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGUSR1, 138), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_other_signals_save_too_and_say_which_they_were(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, undisturbed: Any,
    number: int, code: int,
) -> None:  # fmt: skip
    strike(lambda: os.kill(os.getpid(), number), 3)
    stopped = deit(*arguments(recipe, tmp_path))
    assert stopped.code == code and "saved" in stopped.err
    assert deit(*arguments(recipe, tmp_path)).code == 0
    open_run(tmp_path / "run").assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_stopped_in_an_evaluation_it_measures_again(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The evaluation of the first epoch is given up, not waited for; the epoch is not lost."""
    told, advance = [], Bar.advance

    def struck(self: Bar, by: int, *more: Any) -> None:
        if self.label == "evaluating":
            told.append(by)
            if len(told) == 1:
                sigterm()
        advance(self, by, *more)

    monkeypatch.setattr(Bar, "advance", struck)
    command = arguments(recipe, tmp_path)
    stopped = deit(*command)
    run = open_run(tmp_path / "run")
    assert stopped.code == EXIT_SIGTERM and "step 6 of 6" in stopped.err
    assert told == [5] and not run.rows("eval")
    assert deit(*command).code == 0
    run.assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_stopped_again_and_again_it_ends_in_the_same_bits(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, undisturbed: Any
) -> None:
    for step in (1, 3, 8):
        strike(sigterm, step)
        assert deit(*arguments(recipe, tmp_path)).code == EXIT_SIGTERM
    assert deit(*arguments(recipe, tmp_path)).code == 0
    open_run(tmp_path / "run").assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_other_generators_change_nothing(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, undisturbed: Any
) -> None:
    torch.manual_seed(12345)
    assert deit(*arguments(recipe, tmp_path)).code == 0
    open_run(tmp_path / "run").assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_workers_change_nothing_and_a_stop_with_them_neither(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, undisturbed: Any
) -> None:
    command = arguments(recipe, tmp_path, "--workers=2")
    strike(sigterm, 3)
    assert deit(*command).code == EXIT_SIGTERM
    assert deit(*command).code == 0
    open_run(tmp_path / "run").assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_in_the_middle_of_an_epoch_it_ends_in_the_same_bits(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, undisturbed: Any, workers: int
) -> None:
    """kill -9 in step 10: the last checkpoint is two steps older, or four if the thread that writes was
    still at it, and metrics are ahead of it."""
    command = arguments(recipe, tmp_path, f"--workers={workers}", "--set=train.save_every_steps=4")
    killed = python("-c", STRUCK, "10", str(int(signal.SIGKILL)), *command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = open_run(tmp_path / "run")
    assert run.state()["position"]["updates"] in (6, 8)
    assert max(row["step"] for row in run.rows("step")) == 9
    assert deit(*command).code == 0
    run.assert_same(undisturbed)


@pytest.mark.slow
def test_sigterm_from_outside_to_the_command_itself(
    tmp_path: Path, recipe: Path, open_run: Any, deit: Any
) -> None:
    """The real command with real workers, stopped wherever it is; then finished in this process."""
    more = ("--workers=2", "--set=train.evaluate_every=0", "--set=train.epochs=3")
    command = arguments(recipe, tmp_path, *more)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "deit" / "main.py"), *command],
        env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)  # as a terminal or a scheduler would
        told = process.stderr.read()
    assert process.returncode == EXIT_SIGTERM, told
    assert "stopped: saved" in told and "Traceback" not in told
    assert 0 < open_run(tmp_path / "run").state()["position"]["updates"] < 18
    assert deit(*command).code == 0
    again = arguments(recipe, tmp_path / "undisturbed", *more)
    assert deit(*again).code == 0
    open_run(tmp_path / "run").assert_same(open_run(tmp_path / "undisturbed" / "run"))


@pytest.mark.usefixtures("narrow")
@pytest.mark.slow
def test_a_crash_between_training_and_evaluation_leaves_no_trace(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("srd.training.comparison.measure_on", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            deit(*arguments(recipe, tmp_path))
    assert open_run(tmp_path / "run").state()["position"]["step"] == 6
    assert deit(*arguments(recipe, tmp_path)).code == 0
    open_run(tmp_path / "run").assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any
) -> None:
    command = arguments(recipe, tmp_path, "--epochs=1", "--distillation=none")
    assert deit(*command).code == 0
    run = open_run(tmp_path / "run")

    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}

    before = files()
    again = deit(*command)
    assert again.code == 0 and f"acc1 {run.result()['acc1']:.2f}" in again.out
    assert "finished" in again.out and str(run.path) in again.out
    assert files() == before


@pytest.mark.usefixtures("narrow")
def test_a_changed_recipe_is_refused_and_named(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any
) -> None:
    strike(sigterm, 2)
    deit(*arguments(recipe, tmp_path))
    before = open_run(tmp_path / "run").state()["position"]
    changed = deit(
        *arguments(
            recipe, tmp_path, "--batch-size=20", "--set=optim.lr=0.5", "--set=data.pixels=device"
        )
    )
    assert changed.code == 2 and "Traceback" not in changed.err
    assert "train.batch_size: 10 -> 20" in changed.err and "optim.lr: 0.01 -> 0.5" in changed.err
    assert "data.pixels: released -> device" in changed.err
    assert "--resume none" in changed.err and "data.dataset" not in changed.err
    assert open_run(tmp_path / "run").state()["position"] == before
    # what is not the recipe may change
    more = ("--workers=1", "--set=train.log_every=3", "--set=train.keep_every=1")
    assert deit(*arguments(recipe, tmp_path, *more)).code == 0


@pytest.mark.usefixtures("narrow")
def test_another_teachers_weights_are_another_recipe(
    tmp_path: Path, recipe: Path, random_teacher: Path, deit: Any, strike: Any
) -> None:
    weights = torch.load(random_teacher)
    weights["model"]["head.fc.bias"] += 1
    torch.save(weights, tmp_path / "other.pth")
    strike(sigterm, 2)
    deit(*arguments(recipe, tmp_path))
    other = deit(*arguments(recipe, tmp_path, f"--teacher-checkpoint={tmp_path / 'other.pth'}"))
    assert other.code == 2 and "teacher_sha256" in other.err


@pytest.mark.usefixtures("narrow")
def test_resume_none_starts_anew_and_keeps_the_old_run(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, undisturbed: Any, strike: Any
) -> None:
    strike(sigterm, 2)
    deit(*arguments(recipe, tmp_path))
    again = deit(*arguments(recipe, tmp_path, "--resume=none"))
    assert again.code == 0 and str(tmp_path / "run.1") in again.err
    assert open_run(tmp_path / "run.1").state()["position"]["updates"] == 3
    open_run(tmp_path / "run").assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, undisturbed: Any, strike: Any
) -> None:
    """last.pth is torn: the run goes on from an older file and ends in the same bits."""
    strike(sigterm, 8)
    command = arguments(recipe, tmp_path, "--set=train.keep_every=1")
    deit(*command)
    run = open_run(tmp_path / "run")
    last = run.checkpoints / "last.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    resumed = deit(*command)
    assert resumed.code == 0
    told = f"{last} is damaged: passed over for {run.checkpoints}"
    assert told in resumed.err and told in (run.path / "log.txt").read_text()
    run.assert_same(undisturbed)


@pytest.mark.usefixtures("narrow")
def test_only_damaged_checkpoints_stop_with_advice(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any
) -> None:
    strike(sigterm, 2)
    deit(*arguments(recipe, tmp_path))
    (tmp_path / "run" / "checkpoints" / "last.pth").write_bytes(b"torn")
    resumed = deit(*arguments(recipe, tmp_path))
    assert resumed.code == 2 and "last.pth" in resumed.err and "--resume none" in resumed.err


@pytest.mark.usefixtures("narrow")
def test_resuming_from_a_file_in_another_folder(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, undisturbed: Any
) -> None:
    strike(sigterm, 7)
    deit(*arguments(recipe, tmp_path))
    last = tmp_path / "run" / "checkpoints" / "last.pth"
    assert deit(*arguments(recipe, tmp_path / "other", f"--resume={last}")).code == 0
    mine, theirs = open_run(tmp_path / "other" / "run").state(), undisturbed.state()
    assert mine["position"]["updates"] == 12
    assert all(torch.equal(mine["model"][name], value) for name, value in theirs["model"].items())
