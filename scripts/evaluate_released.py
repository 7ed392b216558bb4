"""Measure all released weights that are here, beside what was reported for them.

    python scripts/evaluate_released.py --data-path /data/imagenet

Writes <output>/released.json and <output>/released.md (output: results/). What is not here is
skipped, and said so; `scripts/fetch_checkpoints.py` fetches it. Images are prepared as the releases
do: resize to 256, centre crop of 224 pixels; bilinear, and bicubic for the teacher of the DeiT
authors. For another choice of one of them use `python deit/main.py --model ...`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.errors import UserError, exit_code

ORDER = ("regnety_160", "deit_tiny", "deit_small", "resnet34", "resnet18_paper", "resnet18")
CLASSES = 1000


def make_parser() -> Parser:
    parser = Parser(
        prog="evaluate_released.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--data-path", "--data_path", required=True, metavar="DIR", help="with val/"
    )
    parser.add_argument("--output", default="results", metavar="DIR")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--amp", default="off", help="off, auto, bf16 or fp16")
    parser.add_argument(
        "--batch-size", "--batch_size", default="256", help="does not change results"
    )
    parser.add_argument("--workers", default="8")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ORDER)}; all if none"
    )
    return parser


def build(name: str) -> Any:
    """The released architecture, with random weights."""
    import timm
    import torchvision

    from deit.student import create_student

    if name.startswith("deit_"):
        return create_student(name.removeprefix("deit_"), CLASSES, 224)
    if name == "regnety_160":
        return timm.create_model(name)
    return getattr(torchvision.models, name.split("_")[0])()


def check_data(path: str) -> None:
    """Raise a UserError unless there are validation images of as many classes as ImageNet has."""
    from srd.data.folder_images import FolderImages

    classes = len(FolderImages(path, "val").classes)
    if classes != CLASSES:
        raise UserError(f"{path} has {classes} classes: these weights know ImageNet's {CLASSES}")


def measure_file(name: str, file: Path, flags: Any, log: Any) -> tuple[Any, list[str]]:
    """A file's accuracy, and the names of the tensors beside the network.

    Raises:
        UserError: the file does not fit the network.
    """
    from srd.config.layers import Layer
    from srd.config.reading import read_config
    from srd.data.inputs import inputs_of
    from srd.device import Precision, choose_device
    from srd.evaluation.accuracy import measure
    from srd.files.hashes import verify
    from srd.files.weights import load_into

    interpolation = "bicubic" if name == "regnety_160" else "bilinear"
    data = {"path": flags.data_path, "workers": flags.workers, "eval_interpolation": interpolation,
            "eval_batch_size": flags.batch_size}  # fmt: skip
    config = read_config([Layer("", {"data": data, "amp": flags.amp})])
    device = choose_device(flags.device)
    precision = Precision.choose(config.amp, device)
    inputs = inputs_of(config, training=False, pin_memory=device.type == "cuda")
    verify(file)
    network = build(name)
    extras = load_into(network, file, name)
    network.to(device, precision.dtype).eval()
    accuracy = measure(
        network,
        inputs.val,
        images=inputs.val_images,
        precision=precision,
        log=log,
        broken=inputs.broken,
        label=f"evaluating {name}",
    )
    return accuracy, list(extras)


def entry(name: str, flags: Any, log: Any) -> dict[str, Any]:
    """One row of the results; its `outcome` is a word or two."""
    from srd.evaluation.published import reproduces
    from srd.files.hashes import sha256
    from srd.files.released import find, released_as

    released = released_as(name)
    assert released is not None
    reported = {"acc1": released.acc1, "acc5": released.acc5}
    row: dict[str, Any] = {"name": name, "what": released.what, "reported": reported,
                           "reported_by": released.reported_by}  # fmt: skip
    file = find(released)
    if file is None:
        by_hand = "by hand from" if released.by_hand else "from"
        return {**row, "outcome": "not here", "hint": f"fetch it {by_hand} {released.source}"}
    accuracy, extras = measure_file(name, file, flags, log)
    outcome = "reproduced" if reproduces(accuracy, released) else "not reproduced"
    return {**row, "file": str(file), "sha256": sha256(file), "measured": accuracy.row(),
            "images_per_second": round(accuracy.images_per_second, 1), "outcome": outcome,
            "difference": round(accuracy.acc1 - released.acc1, 4), "not_needed": extras}  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table: reported, measured here, and what became of it."""
    lines = [
        "| weights | reported | by | measured here | images | difference | |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        reported, measured = row["reported"], row.get("measured")
        told = f"{reported['acc1']:.2f}" + (
            f" / {reported['acc5']:.2f}" if reported["acc5"] else ""
        )
        cells = [row["what"], told, row["reported_by"]]
        if measured:
            cells += [f"{measured['acc1']:.2f} / {measured['acc5']:.2f}", f"{measured['images']:,}",
                      f"{row['difference']:+.2f}"]  # fmt: skip
        else:
            cells += ["not run here", "", ""]
        lines.append(f"| {' | '.join([*cells, row['outcome']])} |")
    return "\n".join(lines) + "\n"


def run(arguments: Sequence[str]) -> None:
    """Measure, print and write.

    Raises:
        UserError: an unknown name, no data, or a file that does not fit.
    """
    from srd.errors import nearest
    from srd.files.checkpoint import write_text
    from srd.run.log import RunLog
    from srd.run.provenance import provenance

    flags = parse_strictly(make_parser(), arguments)
    for name in flags.names:
        if name not in ORDER:
            raise UserError(
                f"no released weights {name!r}{nearest(name, ORDER)}; there are {', '.join(ORDER)}"
            )
    check_data(flags.data_path)
    log, rows = RunLog(None), []
    for name in flags.names or ORDER:
        rows.append(row := entry(name, flags, log))
        log.info(f"{name}: {row['outcome']}" + (f"; {row['hint']}" if "hint" in row else ""))
    folder = Path(flags.output).expanduser()
    write_text(
        folder / "released.json", json.dumps({"weights": rows, **provenance()}, indent=2) + "\n"
    )
    write_text(folder / "released.md", markdown(rows))
    print(markdown(rows) + f"\n{folder / 'released.json'} and released.md hold the same.")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
