"""Command line of the DeiT half.

python deit/main.py --model tiny --train_student     distil (the paper's command)
python deit/main.py --model tiny                     evaluate a checkpoint
python deit/main.py --train_teacher ...              train a teacher with the same engine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.errors import UserError, exit_code

# flag: (configuration field, help); each may be written with - or _ inside
FIELD_FLAGS = {
    "--model": ("model.name", "tiny, small or base"),
    "--data-path": ("data.path", "folder with train/ and val/, a folder per class in each"),
    "--dataset": ("data.dataset", "imagefolder, or digits (needs no files)"),
    "--output": ("output", "where runs go: <output>/<name>/"),
    "--name": ("name", "of this run's folder"),
    "--batch-size": ("train.batch_size", "effective batch size, over all processes"),
    "--epochs": ("train.epochs", "passes over the training images"),
    "--seed": ("seed", "of everything random"),
    "--device": ("device", "auto, cpu or cuda"),
    "--workers": ("data.workers", "loader processes for each training process"),
    "--teacher": ("teacher.name", "a timm model"),
    "--teacher-checkpoint": ("teacher.checkpoint", "its weights"),
    "--distillation": ("distill.method", "srd (the paper), kd (logits only) or none"),
    "--resume": ("resume", "auto (go on where the run was), none, or a checkpoint file"),
    "--amp": ("amp", "auto, off, bf16, fp16 (or fp64, for proofs)"),
}


def _spellings(flag: str) -> list[str]:
    return list(dict.fromkeys([flag, "--" + flag[2:].replace("-", "_")]))


def make_parser() -> Parser:
    """All flags; those of FIELD_FLAGS set a configuration field of the same meaning."""
    parser = Parser(
        prog="deit/main.py",
        description="Distil a teacher into DeiT with a convolutional stem, or evaluate one.",
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
    for flag, (field, text) in FIELD_FLAGS.items():
        parser.add_argument(*_spellings(flag), dest=field, metavar=flag[2:].upper(), help=text)
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any field")
    return parser


def read_config(flags: argparse.Namespace) -> Any:
    """Defaults, then the YAML file, then flags, then --set."""
    from srd.config.fields import Config, check
    from srd.config.layers import Layer, build, nested, read_yaml, setting

    layers = [Layer(flags.config, read_yaml(flags.config))] if flags.config else []
    for flag, (field, _) in FIELD_FLAGS.items():
        if (value := getattr(flags, field)) is not None:
            layers.append(Layer(flag, nested(field, value)))
    if flags.compile:
        layers.append(Layer("--compile", {"compile": True}))
    layers += [Layer(f"--set {text}", setting(text)) for text in flags.set]
    config = build(Config, layers)
    if flags.train_student or flags.train_teacher:
        check(config)
    if config.name is None:
        config = replace(config, name=default_name(config, flags.train_teacher))
    return config


def default_name(config: Any, teacher: bool) -> str:
    """Of a run's folder: what is trained, and on the digits says so."""
    model = f"deit_{config.model.name}_{config.distill.method}"
    data = "digits_" if config.data.dataset == "digits" else ""
    return data + (f"teacher_{config.teacher.name}" if teacher else model)


def run(arguments: Sequence[str]) -> None:
    """Parse, then evaluate or train; raises what `srd.errors.exit_code` turns into exit codes."""
    flags = parse_strictly(make_parser(), arguments)
    config = read_config(flags)
    # torch and timm take seconds to import: mistakes in the command are told before
    from srd.evaluation.of_checkpoint import evaluate_checkpoint
    from srd.training.train import train

    if flags.train_student or flags.train_teacher:
        if flags.checkpoint:
            raise UserError(
                "--checkpoint is for evaluation; to go on from a file use --resume FILE"
            )
        train(config, "teacher" if flags.train_teacher else "student")
    else:
        evaluate_checkpoint(config, flags.checkpoint)


def main() -> None:
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
