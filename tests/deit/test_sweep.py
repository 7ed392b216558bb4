"""A sweep's runs: named, checked before the first, gone on with, reported; or printed for SLURM."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from srd.config.sweep import combinations
from srd.errors import UserError
from srd.files.checkpoint import save_weights


def test_combinations() -> None:
    found = combinations(["seed=0,1", "distill.alpha=2,4.5", "optim.betas=[0.9, 0.99],null"], [])
    assert len(found) == 8
    assert found[1].suffix == "alpha2_betasnone_seed0"
    assert found[0].values == {"seed": 0, "distill.alpha": 2, "optim.betas": [0.9, 0.99]}
    assert found[0].suffix == "alpha2_betas0.9-0.99_seed0"
    assert list(combinations(["lr=0.1"], [])[0].values) == ["optim.lr"]  # a flag's name
    names = [one.suffix for one in combinations(["model.name=a", "teacher.name=b"], [])]
    assert names == ["model.namea_teacher.nameb"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed"], "expected setting=value,value"),
        (["seed="], "expected setting=value,value"),
        (["seed=0", "seed=1"], "named twice"),
        (["seed=1,1"], "two runs would be called seed1"),
        (["name=a,b"], "no setting of the recipe"),
        (["optim.lr=1,2"], "also set by hand"),
        ([f"seed={','.join(map(str, range(1001)))}"], "1001 runs"),
    ],
)
def test_what_is_no_sweep(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        combinations(words, ["optim.lr"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill.loss.alpah=2,4"], "alpha"),
        (["distill.alpha=2,0.5"], "distill.loss.alpha"),
        (["seed=0,x"], "seed"),
    ],
)
def test_all_are_checked_before_the_first(
    tmp_path: Path, recipe: Path, deit: Any, words: list[str], message: str
) -> None:
    told = deit("--train_student", "--config", recipe, "--output", tmp_path, "--sweep", *words)
    assert told.code == 2 and message in told.err and not list(tmp_path.iterdir())


def test_runs_of_several_seeds_share_no_teacher_cache(recipe: Path, deit: Any) -> None:
    command = ["--train_student", "--config", recipe, "--teacher-cache=c", "--sweep-print"]
    told = deit(*command, "--sweep", "lr=0.1,0.2", "seed=0,1")
    assert told.code == 2 and "--sweep seed: a teacher cache is of one seed" in told.err
    assert deit(*command, "--sweep", "lr=0.1,0.2", "augment.label_smoothing=0,0.1").code == 0


def test_a_sweep_is_for_training(recipe: Path, deit: Any) -> None:
    assert deit("--config", recipe, "--sweep", "seed=0,1").code == 2
    assert deit("--train_student", "--config", recipe, "--sweep-print").code == 2


def test_the_printed_job(recipe: Path, deit: Any, tmp_path: Path) -> None:
    command = ["--train_student", "--config", recipe, "--sweep", "distill.alpha=2,4"]
    command += ["--sweep", "seed=0,1"]  # as in one
    told = deit(*command, "--sweep-print", "--output", "my runs", "--name", "x")
    assert told.code == 0 and "#SBATCH --array=0-3" in told.out
    script = told.out.split("launcher=")[0] + 'printf "%s\\n" "$@"\n'
    done = subprocess.run(
        ["bash", "-c", script], env={"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "--train_student", "--config", str(recipe), "--output", "my runs",
        "--set=distill.alpha=4", "--set=seed=0", "--name=x_alpha4_seed0",
    ]  # fmt: skip
    assert shlex.quote("my runs") in told.out


def test_a_printed_job_runs_nothing_that_a_file_says(
    recipe: Path, deit: Any, tmp_path: Path
) -> None:
    """Its first lines are comments, which a line break would end."""
    text = recipe.read_text().rstrip("}") + '}, "output": "a\\ntouch OWNED\\n"}'
    (tmp_path / "x.yaml").write_text(text)
    told = deit(
        "--train_student", "--config", tmp_path / "x.yaml", "--sweep", "seed=0", "--sweep-print"
    )
    assert told.code == 0, told.err
    subprocess.run(
        ["bash", "-c", told.out.split("launcher=")[0]], cwd=tmp_path, env={}, check=False
    )
    assert not (tmp_path / "OWNED").exists() and "touch OWNED" in told.out


@pytest.mark.usefixtures("narrow")
@pytest.mark.slow
def test_a_sweep_runs_goes_on_and_is_reported(tmp_path: Path, recipe: Path, deit: Any) -> None:
    pytest.importorskip("matplotlib")
    command = ["--train_student", "--config", recipe, "--output", tmp_path, "--name=x"]
    command += ["--epochs=1", "--warmup-epochs=0", "--sweep", "seed=0,1"]
    told = deit(*command)
    assert told.code == 0 and "== run 2 of 2: x_seed1" in told.out
    table = (tmp_path / "x_sweep" / "report.md").read_text()
    assert "| x | 2 |" in table
    before = (tmp_path / "x_seed0" / "checkpoints" / "last.pth").stat().st_mtime_ns
    again = deit(*command)
    assert again.out.count("already finished") == 2
    assert (tmp_path / "x_seed0" / "checkpoints" / "last.pth").stat().st_mtime_ns == before


@pytest.mark.usefixtures("narrow")
def test_a_signal_after_a_runs_last_step_begins_no_other(
    tmp_path: Path, recipe: Path, deit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: Any) -> None:
        save_weights(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("srd.training.loop.save_weights", late)
    command = ["--train_student", "--config", recipe, "--output", tmp_path, "--name=x"]
    told = deit(*command, "--epochs=1", "--warmup-epochs=0", "--sweep", "seed=0,1")
    assert told.code == 143 and "the next one is not begun" in told.err
    assert (tmp_path / "x_seed0" / "result.json").is_file() and not (tmp_path / "x_seed1").exists()
