"""The weights that others released: what they are, where they come from, where they go.

`ckpts/README.md` is written from this table, and `scripts/fetch_checkpoints.py` fetches by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from srd.files.hashes import claimed_digits
from srd.files.locate import PACKAGE

TORCH_CACHE = "torch's cache"
UNKNOWN = "not published"


class Released(NamedTuple):
    """One file. Sizes are in words, and only where somebody published them."""

    name: str
    what: str
    file: str  # under ckpts/, or in torch's cache
    source: str  # its address, or the page to fetch it from by hand
    licence: str
    use: str
    acc1: float  # top-1 on ImageNet's validation images in percent, as reported
    acc5: float | None
    reported_by: str
    size: str = UNKNOWN
    by_hand: bool = False
    in_torch_cache: bool = False

    @property
    def digits(self) -> str:
        """The first digits of the SHA-256; "" where nobody published any."""
        return claimed_digits(Path(self.file).name)

    @property
    def place(self) -> str:
        """Where it goes, in words."""
        if self.in_torch_cache:
            return f"{TORCH_CACHE} (`~/.cache/torch/hub/checkpoints/`, or under `TORCH_HOME`)"
        return f"`ckpts/{self.file}`"


PAPER = "https://github.com/roymiles/Simple-Recipe-Distillation"
RELEASED = (
    Released(
        name="regnety_160",
        what="RegNetY-160 of the DeiT authors, the teacher of both DeiT students",
        file="regnety_160-a5fe301d.pth",
        source="https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth",
        size="about 335 MB (timm's copy of the same weights on the Hub)",
        licence="Apache-2.0",
        use="`python deit/main.py --train_student` takes it",
        acc1=82.9,
        acc5=None,
        reported_by="the DeiT paper",
    ),
    Released(
        name="deit_tiny",
        what="the paper's DeiT-tiny",
        file="deit_tiny/ckpt_epoch_299.pth",
        source="https://drive.google.com/drive/folders/1X8U2EA1gGtJ1RugbjUw6GM0-BGtEZ-LO",
        by_hand=True,
        licence="none stated",
        use="`python deit/main.py --model tiny` evaluates it",
        acc1=77.2,
        acc5=93.7,
        reported_by="the paper",
    ),
    Released(
        name="deit_small",
        what="the paper's DeiT-small",
        file="deit_small/ckpt_epoch_299.pth",
        source="https://drive.google.com/drive/folders/1e6i7Aq_cKEMrGRuLP_9gt7LzcAQbeO0F",
        by_hand=True,
        licence="none stated",
        use="`python deit/main.py --model small` evaluates it",
        acc1=82.1,
        acc5=96.0,
        reported_by="the paper",
    ),
    Released(
        name="resnet34",
        what="torchvision's ResNet-34, IMAGENET1K_V1, the teacher of ResNet-18",
        file="resnet34-b627a593.pth",
        source="https://download.pytorch.org/models/resnet34-b627a593.pth",
        size="83.3 MiB (torchvision)",
        in_torch_cache=True,
        licence="BSD-3-Clause (torchvision)",
        use="`configs/res3418.yaml` names it by `weights: IMAGENET1K_V1`; torchvision fetches it "
        "itself where there is a network",
        acc1=73.314,
        acc5=91.42,
        reported_by="torchvision",
    ),
    Released(
        name="resnet18",
        what="ResNet-18 distilled with this method, torchdistill 1.1.0's release",
        file="resnet18/ilsvrc2012-resnet18_from_resnet34.pt",
        source="https://github.com/yoshitomo-matsubara/torchdistill/releases/download/v1.1.0/"
        "ilsvrc2012-resnet18_from_resnet34.pt",
        licence="MIT (torchdistill)",
        use="`-test_only` tests it where there is no run of that name, nor a file that the "
        "configuration names",
        acc1=71.92,
        acc5=None,
        reported_by="torchdistill",
    ),
    Released(
        name="resnet18_paper",
        what="the paper's own ResNet-18",
        file="resnet18/imagenet2012-resnet18_from_resnet34_best.pt",
        source="https://drive.google.com/drive/folders/1P5mePA0vwWkGqzJCiExfVzpqZEpEDEEz",
        by_hand=True,
        licence="none stated",
        use="likewise; the name is that of the paper's configuration, take what the folder holds",
        acc1=71.87,
        acc5=None,
        reported_by="the paper's repository (71.63 in the paper)",
    ),
)


def in_ckpts(*names: str) -> Path | None:
    """The first of `names` that exists in `ckpts/`, here or in the checkout that Python runs."""
    places = (Path("ckpts"), PACKAGE / "ckpts")
    return next(
        (place / name for name in names for place in places if (place / name).is_file()), None
    )


def find(entry: Released) -> Path | None:
    """Where a released file lies on this machine, if it does."""
    if entry.in_torch_cache:
        path = Path(torch.hub.get_dir()) / "checkpoints" / entry.file
        return path if path.is_file() else None
    return in_ckpts(entry.file)


def released_as(name: str, file: Path | None = None) -> Released | None:
    """The entry that a file's name tells, else the one called `name`."""
    by_file = {
        Path(entry.file).name: entry for entry in RELEASED if not entry.file.startswith("deit_")
    }
    known = {entry.name: entry for entry in RELEASED}
    return by_file.get(file.name if file else "") or known.get(name)


def markdown() -> str:
    """The table of `ckpts/README.md`."""
    rows = ["| name | what | where it goes | size | SHA-256 | from | licence |", "| --- " * 7 + "|"]
    for entry in RELEASED:
        digits = f"starts with `{entry.digits}`" if entry.digits else UNKNOWN
        source = f"by hand: <{entry.source}>" if entry.by_hand else f"<{entry.source}>"
        file = f"{entry.file}` in {entry.place}" if entry.in_torch_cache else f"ckpts/{entry.file}`"
        cells = (
            f"`{entry.name}`",
            f"{entry.what}; {entry.use}",
            f"`{file}",
            entry.size,
            digits,
            source,
        )
        rows.append(f"| {' | '.join((*cells, entry.licence))} |")
    return "\n".join(rows)
