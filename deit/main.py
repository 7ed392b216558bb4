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
from dataclasses import replace
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.config.flags import FLAGS
from srd.errors import UserError, exit_code


def make_parser() -> Parser:
    """All flags; those of FLAGS set a configuration field of the same meaning."""
    parser = Parser(
        prog="deit/main.py",
        description="Distil a teacher into a student, or evaluate one.",
        epilog="Every field of srd/config/fields.py can be set with --set or in a YAML file.",
        allow_abbrev=False,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--train-student", "--train_student", action="store_true", help="distil")
    mode.add_argument(
        "--train-teacher", "--train_teacher", action="store_true", help="train the teacher"
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to evaluate")
    for name, (field, text) in FLAGS.items():
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
        parser.add_argument(*spellings, dest=field, metavar=name.upper(), help=text)
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any field")
    return parser


def configure(flags: argparse.Namespace) -> Any:
    """Defaults, then the YAML file, then flags, then --set."""
    from srd.config.checks import check
    from srd.config.fields import default_name, read_config
    from srd.config.layers import Layer, nested, read_yaml, setting
    from srd.files.locate import recipe_file

    file = flags.config and recipe_file(flags.config)
    layers = [Layer(flags.config, read_yaml(file))] if file else []
    for name, (field, _) in FLAGS.items():
        if (value := getattr(flags, field)) is not None:
            layers.append(Layer(f"--{name}", nested(field, value)))
    if flags.compile:
        layers.append(Layer("--compile", {"compile": True}))
    layers += [Layer(f"--set {text}", setting(text)) for text in flags.set]
    config = read_config(layers)
    if flags.train_student or flags.train_teacher:
        check(config)
    name = config.name or default_name(config, "teacher" if flags.train_teacher else "student")
    return replace(config, name=name)


def run(arguments: Sequence[str]) -> None:
    """Parse, then evaluate or train; raises what `srd.errors.exit_code` turns into exit codes."""
    flags = parse_strictly(make_parser(), arguments)
    training = flags.train_student or flags.train_teacher
    if flags.checkpoint and training:
        raise UserError("--checkpoint is for evaluation; to go on from a file use --resume FILE")
    config = configure(flags)
    # torch and timm take seconds to import: mistakes in the command are told before
    if training:
        from srd.training.train import train

        train(config, "teacher" if flags.train_teacher else "student")
    else:
        from srd.evaluation.of_checkpoint import evaluate_checkpoint

        evaluate_checkpoint(config, flags.checkpoint)


def train(arguments: Sequence[str]) -> None:
    """Train a student; with --train_teacher, a teacher."""
    teacher = {"--train-teacher", "--train_teacher"} & set(arguments)
    run(arguments if teacher else ["--train-student", *arguments])


def evaluate(arguments: Sequence[str]) -> None:
    """Measure a checkpoint on the validation images."""
    if flags := [name for name in arguments if name.replace("_", "-").startswith("--train-")]:
        raise UserError(f"{flags[0]}: srd evaluate trains nothing; use srd train")
    run(arguments)


def main() -> None:
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
