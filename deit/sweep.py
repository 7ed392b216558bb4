"""A sweep: its runs one after the other, or the script that a SLURM cluster runs them with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srd.config.fields import Config
from srd.config.layers import Layer, flatten
from srd.config.sweep import Combination, check_one_cache, combinations
from srd.errors import RunFailed, UserError
from srd.printable import printable

Configure = Callable[[Sequence[Layer], Sequence[Layer]], Config]

SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name=srd-sweep
#SBATCH --array=0-{last}
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
# Save as sweep.sbatch in the project's folder, and: sbatch --gpus-per-node 1 sweep.sbatch
# When all are done: python scripts/report.py {output}
runs=(
{runs}
)
eval "set -- ${{runs[$SLURM_ARRAY_TASK_ID]}}"
launcher=scripts/train_deit.sh source "$SLURM_SUBMIT_DIR/scripts/slurm/job.sh"
"""


def plan(
    words: Sequence[str], shared: Sequence[Layer], given: Sequence[Layer], configure: Configure
) -> list[tuple[Combination, Config, list[Layer]]]:
    """Every run with its checked configuration, and the layers that were given for it.

    Raises:
        UserError: a combination cannot be; nothing was started.
    """
    by_hand = [key for layer in given for key in flatten(layer.values)]
    planned = []
    for combination in combinations(words, by_hand):
        layers = [*given, *combination.layers]
        config = configure(shared, layers)
        name = f"{config.name}_{combination.suffix}"
        layers.append(Layer("--sweep", {"name": name}))
        planned.append((combination, replace(config, name=name), layers))
    if any(config.cache.path for _, config, _ in planned):
        check_one_cache([combination for combination, _, _ in planned])
    return planned


def print_script(
    planned: Sequence[tuple[Combination, Config, list[Layer]]], arguments: Sequence[str]
) -> None:
    """Print a SLURM array job of the sweep's runs.

    Args:
        arguments: of the command.
    """
    common = _without_sweep(arguments)
    lines = []
    for combination, config, _ in planned:
        settings = [f"--set={key}={_text(value)}" for key, value in combination.values.items()]
        command = [*common, *settings, f"--name={config.name}"]
        lines.append("  " + shlex.quote(shlex.join(command)))
    # in a comment, which a line break would end
    output = shlex.quote(printable(str(planned[0][1].output)))
    print(SCRIPT.format(last=len(planned) - 1, runs="\n".join(lines), output=output), end="")


def _text(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _without_sweep(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--sweep` and its words, `--sweep-print`, and `--name`."""
    kept: list[str] = []
    dropping = ""
    for word in arguments:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            dropping = name if name in ("--sweep", "--sweep-print", "--name") else ""
            if not dropping:
                kept.append(word)
        elif not dropping:
            kept.append(word)
    return kept


def run_all(
    planned: Sequence[tuple[Combination, Config, list[Layer]]],
    train: Callable[[list[Layer]], object],
) -> None:
    """The runs one after the other, and their report; finished ones are passed over.

    A run that fails (a loss that is not finite, say) does not keep the others from theirs.

    Raises:
        Stopped: a signal came; the same command goes on. RunFailed: some failed, at the end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep runs in one process; --sweep-print prints a job for each run")
    failed = []
    for number, (_, config, layers) in enumerate(planned, 1):
        print(f"== run {number} of {len(planned)}: {printable(str(config.name))}", flush=True)
        try:
            train(layers)
        except RunFailed as failure:
            print(f"failed: {printable(str(failure))}", flush=True)
            failed.append(str(config.name))
    folders = [Path(config.output).expanduser() / str(config.name) for _, config, _ in planned]
    combination, config, _ = planned[0]
    name = str(config.name).removesuffix(f"_{combination.suffix}").rsplit("/", 1)[-1]
    done = [folder for folder in folders if folder.name not in failed and folder.is_dir()]
    _report(done, f"{name}_sweep")
    if failed:
        raise RunFailed(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}")


def _report(folders: list[Path], name: str) -> None:
    """The report of what there is, beside the runs."""
    from srd.commands.report import run as report

    if not folders:
        return
    try:
        report([*map(str, folders), f"--output={folders[0].with_name(name)}"])
    except UserError as error:  # without matplotlib, the runs are as good
        print(f"no report: {printable(str(error))}")
