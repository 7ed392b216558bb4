"""What TensorBoard is shown of a run besides curves: its name, its settings, what the network sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from srd.config.layers import dump_yaml, flatten
from srd.printable import as_code, printable

MOST_SETTINGS = 300  # a recipe of torchdistill's may say anything
MEASURES = {  # columns beside the settings, without labels or with
    False: ("eval/acc1", "eval/acc5", "eval/loss", "eval/agreement", "epoch/loss"),
    True: ("eval/distance", "eval/cosine", "eval/agreement", "epoch/loss"),
}
SHOWN = 16  # pictures of a batch


def show_settings(board: SummaryWriter, name: str, settings: Mapping[str, Any]) -> None:
    """The run's name and settings as hyperparameters, and as text."""
    flat = {"run": name, **flatten(settings)}
    values = {printable(k)[:200]: _plain(v) for k, v in [*flat.items()][:MOST_SETTINGS]}
    writer: Any = board.file_writer
    measures = MEASURES[bool(flat.get("data.unlabelled"))]
    columns = [Metric(tag) for tag in measures]
    writer.add_summary(hparams_config_pb([HParam(key) for key in values], columns))
    writer.add_summary(hparams_pb(values, trial_id=name))
    board.add_text("settings", f"run {printable(name)}\n\n{as_code(dump_yaml(settings), 'yaml')}")


def _plain(value: Any) -> float | bool | str:
    """A value as TensorBoard takes it."""
    return value if isinstance(value, (bool, int, float)) else printable(str(value))[:500]


@torch.no_grad()
def show_pictures(
    board: SummaryWriter,
    images: Tensor,
    step: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Some pictures of a training batch, as the network sees them.

    Args:
        images: (B, C, H, W), or N turns of each picture (B, N, C, H, W), as SSKD trains on.
        mean, std: what they were normalised with; None where nobody knows: from dark to bright.
    """
    images = images.flatten(0, -4)[:SHOWN].detach().float().cpu()
    if mean is not None and std is not None:
        images = images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        low, high = images.amin(), images.amax()
        images = (images - low) / (high - low).clamp_min(1e-6)
    grid = make_grid(images.clamp(0, 1), nrow=4)
    board.add_image("training_batch", grid[:3], step)
