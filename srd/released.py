"""The weights that others released: what they are, where they come from, where they go.

`ckpts/README.md` is written from this table, and `scripts/fetch_checkpoints.py` fetches by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from srd.digests import claimed_digits

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
    ),
    Released(
        name="deit_tiny",
        what="the paper's DeiT-tiny",
        file="deit_tiny/ckpt_epoch_299.pth",
        source="https://drive.google.com/drive/folders/1X8U2EA1gGtJ1RugbjUw6GM0-BGtEZ-LO",
        by_hand=True,
        licence="none stated",
        use="`python deit/main.py --model tiny` evaluates it",
    ),
    Released(
        name="deit_small",
        what="the paper's DeiT-small",
        file="deit_small/ckpt_epoch_299.pth",
        source="https://drive.google.com/drive/folders/1e6i7Aq_cKEMrGRuLP_9gt7LzcAQbeO0F",
        by_hand=True,
        licence="none stated",
        use="`python deit/main.py --model small` evaluates it",
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
    ),
    Released(
        name="resnet18",
        what="ResNet-18 distilled with this method, torchdistill 1.1.0's release",
        file="resnet18/ilsvrc2012-resnet18_from_resnet34.pt",
        source="https://github.com/yoshitomo-matsubara/torchdistill/releases/download/v1.1.0/"
        "ilsvrc2012-resnet18_from_resnet34.pt",
        licence="MIT (torchdistill)",
        use="`-test_only` takes the file that `models.student_model.src_ckpt` names",
    ),
    Released(
        name="resnet18_paper",
        what="the paper's own ResNet-18",
        file="resnet18/imagenet2012-resnet18_from_resnet34_best.pt",
        source="https://drive.google.com/drive/folders/1P5mePA0vwWkGqzJCiExfVzpqZEpEDEEz",
        by_hand=True,
        licence="none stated",
        use="likewise; the name is that of the paper's configuration, take what the folder holds",
    ),
)


def markdown() -> str:
    """The table of `ckpts/README.md`."""
    rows = ["| name | what | where it goes | size | SHA-256 | from | licence |", "| --- " * 7 + "|"]
    for one in RELEASED:
        digits = f"starts with `{one.digits}`" if one.digits else UNKNOWN
        source = f"by hand: <{one.source}>" if one.by_hand else f"<{one.source}>"
        file = f"{one.file}` in {one.place}" if one.in_torch_cache else f"ckpts/{one.file}`"
        cells = (f"`{one.name}`", f"{one.what}; {one.use}", f"`{file}", one.size, digits, source)
        rows.append(f"| {' | '.join((*cells, one.licence))} |")
    return "\n".join(rows)
