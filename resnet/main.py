"""Command line of the ResNet half, with torchdistill's spellings.

python resnet/image_classification.py --config configs/res3418.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from resnet.options import Options
from srd.cli import Parser, parse_strictly
from srd.config.layers import Layer, build
from srd.errors import UserError, exit_code, warn
from srd.files.locate import recipe_file
from srd.installed import need_extra
from srd.libraries import importing


def make_parser() -> Parser:
    """torchdistill's flags, and ours."""
    parser = Parser(
        prog="resnet/image_classification.py",
        description="Train and test image classifiers from a torchdistill YAML file.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="torchdistill YAML file")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--seed", default=0, help="of everything random")
    add(
        "--log",
        "--run_log",
        dest="run_log",
        metavar="FILE",
        help="copy the run's log.txt there too",
    )
    add("--output", default="runs", help="where runs go: <output>/<name>/")
    add("--name", help="of this run's folder (default: the configuration's)")
    add(
        "--data-path", "--data_path", metavar="DIR", help="in place of the file's root_dir or _root"
    )
    add("--teacher-cache", "--teacher_cache", metavar="DIR", help="in place of run.teacher_cache")
    add("--resume", default="auto", help="auto, none, or a checkpoint file")
    add("--track", metavar="TRACKER", help="wandb, mlflow or trackio: send the run's curves there")
    add("--start_epoch", type=int, default=0, help="accepted; a run knows by itself where it was")
    add("--world_size", type=int, default=1, help="accepted; torchrun says it")
    add("--dist_url", default="env://", help="accepted; torchrun says it")
    for flag, text in (
        ("-test_only", "only test"),
        ("-student_only", "test the student only"),
        ("-log_config", "log the configuration"),
        ("--extend", "go on with a run under a changed file"),
        ("--slim", "when it is done, remove the run's checkpoints"),
        ("-adjust_lr", "multiply the learning rate by the number of processes"),
        ("-disable_cudnn_benchmark", "accepted; see run.deterministic"),
    ):
        add(flag, action="store_true", help=text)
    add("--trust-config", action="store_true", help="run whatever Python the file names")
    return parser


# Flags of the other half, and where a file has them.
IN_THE_FILE = {
    "--epochs": "train.num_epochs",
    "--batch-size": "train.train_data_loader.kwargs.batch_size",
    "--lr": "train.optimizer.kwargs.lr",
    "--workers": "train.train_data_loader.kwargs.num_workers",
    "--amp": "run.amp",
    "--compile": "run.compile",
}


def run(arguments: Sequence[str]) -> None:
    """Parse and run; raises what `srd.errors.exit_code` turns into exit codes."""
    for flag in arguments:
        if place := IN_THE_FILE.get(flag.partition("=")[0].replace("_", "-")):
            raise UserError(f"{flag}: a torchdistill file says it itself, under {place}")
    flags: argparse.Namespace = parse_strictly(make_parser(), arguments)
    flags.config = str(recipe_file(flags.config))
    if flags.start_epoch:
        raise UserError("--start_epoch: a run goes on by itself where it was; see --resume")
    given = {name: value for name, value in vars(flags).items() if value is not None}
    names = Options.__dataclass_fields__
    layer = Layer("the command line", {name: given[name] for name in names if name in given})
    options = build(Options, [layer])
    for name in options.without_effect():
        warn(f"{name} has no effect in a test")
    need_extra("resnet", "torchdistill", what="torchdistill's YAML files")
    with importing():
        from resnet.train import run

    run(options)


def main() -> None:
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
