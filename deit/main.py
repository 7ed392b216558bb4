"""Command line of the DeiT half, and of every other student.

python deit/main.py --model tiny --train_student     distil (the paper's command)
python deit/main.py --model tiny                     evaluate a checkpoint
python deit/main.py --train_teacher ...              train a teacher with the same engine

`srd train` and `srd evaluate` are the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Literal

from srd.cli import Parser, parse_strictly
from srd.commands.settings import add_settings, given, shared
from srd.errors import UserError, exit_code
from srd.libraries import importing


def make_parser(prog: str = "deit/main.py") -> Parser:
    """All flags; those of FLAGS set a configuration field of the same meaning."""
    parser = Parser(
        prog=prog,
        description="Distil a teacher into a student, or evaluate one.",
        epilog="Every field of srd/config/fields.py can be set with --set or in a YAML file.",
        allow_abbrev=False,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--train-student", "--train_student", action="store_true", help="distil")
    mode.add_argument(
        "--train-teacher", "--train_teacher", action="store_true", help="train the teacher"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to evaluate")
    add_settings(parser)
    parser.add_argument(
        "--sweep",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE,VALUE",
        help="a run for each combination of values",
    )
    parser.add_argument(
        "--sweep-print", action="store_true", help="print the sweep as a SLURM array job instead"
    )
    return parser


def trained(flags: argparse.Namespace) -> Literal["student", "teacher"] | None:
    """Which of the two is to be trained, if any."""
    return "student" if flags.train_student else "teacher" if flags.train_teacher else None


def layers_of(flags: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Settings of the YAML file (or the evaluated run's own); and of flags, then --set."""
    from srd.run.settings import own_settings

    if flags.checkpoint and not flags.config:
        return own_settings(flags.checkpoint), given(flags)
    return shared(flags), given(flags)


def configure(flags: argparse.Namespace) -> Any:
    """Defaults, then the layers above, of which the last wins."""
    from srd.config.effects import configure

    return configure(*layers_of(flags), trained(flags) or "evaluation")


def _fields() -> list[str]:
    """Everything that --set can set."""
    from srd.config.fields import Config
    from srd.config.layers import dotted_keys

    return list(dotted_keys(Config))


def run(arguments: Sequence[str], prog: str = "deit/main.py") -> None:
    """Parse, then evaluate or train; raises what `srd.errors.exit_code` turns into exit codes."""
    flags = parse_strictly(make_parser(prog), arguments, _fields)
    model = trained(flags)
    if flags.checkpoint and model:
        raise UserError("--checkpoint is for evaluation; to go on from a file use --resume FILE")
    if flags.sweep or flags.sweep_print:
        return run_sweep(flags, arguments)
    with importing():  # takes seconds: mistakes in the command are told before
        config = configure(flags)
        if model:
            from srd.training.presets import configure_training
            from srd.training.train import train
        else:
            from srd.evaluation.of_checkpoint import evaluate_checkpoint
    if model:
        config, notes = configure_training(*layers_of(flags), model)
        train(config, model, notes)
    else:
        evaluate_checkpoint(config, flags.checkpoint)


def run_sweep(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Train all combinations of a sweep, or print their job; all are checked before."""
    from deit import sweep
    from srd.config.effects import configure

    doing = trained(flags)
    if doing is None or not flags.sweep:
        raise UserError("--sweep is for a training: --train_student --sweep seed=0,1,2")
    shared, given = layers_of(flags)
    planned = sweep.plan(
        flags.sweep, shared, given, lambda shared, given: configure(shared, given, doing)
    )
    if flags.sweep_print:
        return sweep.print_script(planned, arguments)
    from srd.training.presets import configure_training
    from srd.training.train import train_one_of_several

    def train_one(layers: list[Any]) -> None:
        config, notes = configure_training(shared, layers, doing)
        train_one_of_several(config, doing, notes)

    sweep.run_all(planned, train_one)


def train(arguments: Sequence[str]) -> None:
    """Train a student; with --train_teacher, a teacher."""
    teacher = {"--train-teacher", "--train_teacher"} & set(arguments)
    run(arguments if teacher else ["--train-student", *arguments], prog="srd train")


def evaluate(arguments: Sequence[str]) -> None:
    """Measure a checkpoint on the validation images."""
    if flags := [name for name in arguments if name.replace("_", "-").startswith("--train-")]:
        raise UserError(f"{flags[0]}: srd evaluate trains nothing; use srd train")
    run(arguments, prog="srd evaluate")


def main() -> None:
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
