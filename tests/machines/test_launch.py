"""The launcher: a run of several processes ends, and is told, as one of a single process.

Real torchrun and real processes. Where only the launcher is asked, they run a few lines of their
own instead of a training.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srd.run.log import read_metrics
from tests.machines.same_run import differences

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    "--train_student", "--config=configs/digits/deit.yaml", "--distillation=none", "--batch-size=40",
    "--set=data.images_per_class=8", "--set=model.image_size=16", "--set=optim.warmup_epochs=2",
    "--set=train.save_every_steps=5", "--name=run",
]  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Two processes of one thread; the launcher's folder is in `tmp_path`."""
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1",
            "NPROC": "2"}  # fmt: skip


@pytest.fixture
def launch(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Any]:
    """`launch("lines of Python")` runs them in each process; returns exit code and output."""

    def call(lines: str, **more: str) -> tuple[int, str]:
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        (tmp_path / "script.py").write_text(
            "import os, sys, time\nfrom pathlib import Path\nfrom srd.errors import *\n"
            f"rank = os.environ['LOCAL_RANK']\ndef run(arguments):\n{body}"
        )
        done = subprocess.run(
            ["bash", "-c", "module=script; source scripts/launch.sh"], cwd=ROOT, text=True,
            env={**environment, **more}, capture_output=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return call


def train(output: Path, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    """The real launcher of the DeiT half."""
    command = ["scripts/train_deit.sh", *RUN, f"--output={output}", *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # the tests may run in a shell's background, where SIGINT is ignored and cannot be trapped
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until `step` is logged."""
    metrics = output / "run" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"the run ended before step {step}: {process.communicate()}")


def stop(output: Path, environment: dict[str, str], step: int, number: int, epochs: int) -> str:
    """Train until `step`, send the launcher a signal, check its exit code; returns what it said."""
    process = train(output, environment, f"--epochs={epochs}")
    wait_for_step(output, step, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 128 + number, told
    assert told.count("stopped: saved") == 1 and "Traceback" not in told and "SIGTERM" not in told
    return told


def test_a_wrong_flag_is_told_once(environment: dict[str, str]) -> None:
    command = ["scripts/train_deit.sh", "--modle", "tiny", "--train_student"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: unknown argument --modle (did you mean '--model'?)\n"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"NNODES": "2"}, "needs RDZV_HOST"),
        pytest.param({"NNODES": "2", "RDZV_HOST": "no.such.host.invalid"},
         "no.such.host.invalid cannot be found", marks=pytest.mark.slow),
        pytest.param(
            {"NNODES": "2", "RDZV_HOST": "localhost", "RDZV_PORT": "29477",
             "SRD_DIST_TIMEOUT": "2"},
            "meet at localhost:29477 and did not within 2 s", marks=pytest.mark.slow),
        ({"NPROC": "two"}, "NPROC=two must be a whole number"),
    ],
    ids=["no-host", "unknown-host", "nobody-comes", "not-a-number"],
)  # fmt: skip
def test_machines_that_do_not_meet(launch: Any, variables: dict[str, str], told: str) -> None:
    code, text = launch("pass", **variables)
    assert code == 2 and told in text and text.count("\n") == 1, text


def test_an_error_of_one_process_ends_the_others(launch: Any) -> None:
    code, text = launch("if rank == '1': raise UserError('mine')\ntime.sleep(600)")
    assert code == 2, text
    assert text.count("error: mine") == 1 and "Traceback" not in text


@pytest.mark.slow
def test_a_failure_is_not_tried_again(launch: Any, tmp_path: Path) -> None:
    code, text = launch("open(f'{rank}.tried', 'a').write('x')\nraise RunFailed('loss is nan')"
                           .replace("f'", f"f'{tmp_path}/"))  # fmt: skip
    assert code == 1 and text == "failed: loss is nan\n"
    tried = [path.read_text() for path in tmp_path.glob("*.tried")]  # the later may not even begin
    assert tried and set(tried) == {"x"}


@pytest.mark.slow
def test_a_crash_is_tried_again_and_then_told(launch: Any, tmp_path: Path) -> None:
    crash = (
        f"open('{tmp_path}/tried', 'a').write(rank)\nif rank == '0': os._exit(9)\ntime.sleep(600)"
    )
    code, text = launch(crash, MAX_RESTARTS="2")
    assert code == 1 and (tmp_path / "tried").read_text().count("0") == 3
    assert "failed: process 0 died (exit code 9)" in text and "Traceback" not in text


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_143(tmp_path: Path, environment: dict[str, str]) -> None:
    stop(tmp_path, environment, 1, signal.SIGTERM, 500)
    assert not list(tmp_path.glob("tmp.*")), "the launcher's folder is left"


@pytest.mark.slow
def test_killed_outright_the_run_is_saved_and_goes_on(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """kill -9 of the launcher leaves nobody at work; the same command waits for what is saved."""
    launcher = train(tmp_path, environment, "--epochs=500")
    wait_for_step(tmp_path, 3, launcher)
    launcher.kill()
    environment = {**environment, "NPROC": "1"}
    again = train(tmp_path, environment, "--epochs=500")
    deadline = time.monotonic() + 60
    log = tmp_path / "run" / "log.txt"
    while "resuming" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    _, told = again.communicate(timeout=100)
    assert again.returncode == 143, told
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl", "step")]
    assert steps == list(range(len(steps))), "two runs wrote the same folder"


@pytest.mark.slow
def test_stopped_and_killed_it_ends_in_the_same_bits(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """SIGUSR1, SIGINT, then kill -9 of one process, which torchrun starts again."""
    undisturbed = train(tmp_path / "undisturbed", environment, "--epochs=20")
    assert undisturbed.wait(200) == 0
    output = tmp_path / "output"
    stop(output, environment, 6, signal.SIGUSR1, 20)
    stop(output, environment, 13, signal.SIGINT, 20)
    last = train(output, environment, "--epochs=20")
    wait_for_step(output, 23, last)
    (victim,) = tmp_path.glob("tmp.*/pid.1")
    os.kill(int(victim.read_text()), signal.SIGKILL)
    _, told = last.communicate(timeout=200)
    assert last.returncode == 0, told
    assert told.count("resuming") == 2 and "(20 updates made)" in told
    assert len(read_metrics(output / "run" / "metrics.jsonl", "step")) == 40
    assert differences(tmp_path / "undisturbed" / "run", output / "run") == []
