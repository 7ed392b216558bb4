"""How like its teacher a student is on pictures without classes: by features, and by logits."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.compiled import uncompiled
from srd.data.inputs import Inputs
from srd.data.loader import to_device
from srd.device import Precision
from srd.distributed import processes, reduce
from srd.errors import UserError
from srd.evaluation.accuracy import EvaluationStopped
from srd.method.logits import distillation_kl
from srd.method.loss import Loss
from srd.models.outputs import Output
from srd.run.log import RunLog


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Means over pictures; None where the loss, or the teacher, has none.

    Args:
        cosine: between the projected, normalised features and the teacher's, as the loss compares
            them.
        repr: the representation loss of each batch of an evaluation.
        agreement: of the highest logits, in percent.
        kl: of the teacher's logits to the student's.
    """

    images: int
    images_per_second: float
    cosine: float | None = None
    repr: float | None = None
    agreement: float | None = None
    kl: float | None = None

    @property
    def distance(self) -> float:
        """Of the features: 1 - cosine, else the representation loss; without either, the KL."""
        if self.cosine is not None:
            return 1 - self.cosine
        value = self.repr if self.repr is not None else self.kl
        assert value is not None
        return value

    @property
    def score(self) -> float:
        """What the best epoch has most of, from 0 to 100."""
        if self.cosine is not None:
            return min(100.0, max(0.0, 50 * (1 + self.cosine)))
        return 100 / (1 + math.exp(min(700.0, max(-700.0, self.distance))))

    def row(self) -> dict[str, float | int]:
        """The measured numbers, without the speed."""
        names = ("cosine", "repr", "agreement", "kl")
        values = {name: getattr(self, name) for name in names}
        told = {name: value for name, value in values.items() if value is not None}
        return {"distance": self.distance, **told, "images": self.images}

    def best(self, score: float) -> dict[str, float]:
        """What `result.json` says of the best epoch's score."""
        if self.cosine is not None:
            return {"best_distance": 2 - score / 50}
        return {"best_distance": math.log(max(1e-300, 100 / score - 1)) if score > 0 else math.inf}

    def told(self, score: float) -> str:
        """For the closing line."""
        agreement = f", agreement {self.agreement:.2f} %" if self.agreement is not None else ""
        best = self.best(score)["best_distance"]
        return f"feature distance {self.distance:.4f}{agreement}, best {best:.4f}"

    def __str__(self) -> str:
        told = "  ".join(
            f"{name} {value:.4f}" for name, value in self.row().items() if name != "images"
        )
        return f"{told}  on {self.images} images ({self.images_per_second:.0f} images/s)"


@uncompiled()
@torch.no_grad()
def measure_likeness(
    student: nn.Module,
    teach: Callable[[Tensor], Output],
    inputs: Inputs,
    *,
    loss: Loss | None,
    logits: bool,
    temperature: float,
    precision: Precision,
    log: RunLog,
    stop: Callable[[], bool] = lambda: False,
) -> Likeness:
    """Compare student and teacher on the validation images, each once over all processes.

    Args:
        student: images (B, 3, H, W) to `Output`, in evaluation mode.
        loss: between representations, with its projector; None where there is none.
        logits: whether both have logits of the same classes.

    Raises:
        UserError: a file cannot be read (and skipping is off), or there was nothing to measure.
        EvaluationStopped: `stop` said so, here or on another process.
    """
    here = None if loss is None else copy.deepcopy(loss).eval()
    if here is not None:
        here.use_local_statistics()  # processes have other numbers of batches
    sums = torch.zeros(6, dtype=torch.float64, device=precision.device)
    comparable, start = False, time.perf_counter()
    with log.bar("comparing with the teacher", inputs.val_images) as bar:
        for batch in inputs.val:
            if stop():
                sums[5] += 1
                break
            inputs.broken.check(batch)
            if (count := len(batch.targets)) == 0:
                continue
            images, _ = to_device(batch, precision.device, precision.dtype)
            with precision.autocast():
                z_t, z_s = teach(images), student(images)
                if here is not None:
                    own, other = (z.read(here.reads or "features") for z in (z_s, z_t))
                    assert own is not None and other is not None  # tried on a black image before
                    sums[1] += count * here(own, other).double()
                    if (pair := here.aligned(own, other)) is not None:
                        comparable = True
                        cosine = F.cosine_similarity(pair[0].double(), pair[1].double(), dim=-1)
                        sums[0] += (
                            cosine.flatten(1).mean(1).sum() if cosine.ndim > 1 else cosine.sum()
                        )
                if logits:
                    sums[2] += (z_s.logits.argmax(1) == z_t.logits.argmax(1)).sum()
                    sums[3] += count * distillation_kl(z_s.logits, z_t.logits, temperature).double()
            sums[4] += count
            bar.advance(count * processes.world_size())
    total: list[Any] = reduce.reduce_sum(sums).tolist()
    if total[5]:
        raise EvaluationStopped
    if not (images_seen := int(total[4])):
        raise UserError("no image could be evaluated")
    cosine_mean, repr_mean, agreement, kl = (value / images_seen for value in total[:4])
    return Likeness(
        images=images_seen,
        images_per_second=images_seen / (time.perf_counter() - start),
        cosine=cosine_mean if comparable else None,
        repr=repr_mean if here is not None else None,
        agreement=100 * agreement if logits else None,
        kl=kl if logits else None,
    )
