"""The questions, by name: what is exchanged in one recipe, and how each variant is tuned.

A new one is an entry in `STUDIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WEIGHTS = (0.25, 1.0, 4.0)  # factors of a searched setting, the same number for everybody
RATES = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Search:
    """One setting that is tuned, by its value in the configuration times each of some factors."""

    key: str
    factors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A recipe with something exchanged.

    Args:
        label: in tables, and of its runs' folders.
        settings: by dotted name, over those of the configuration.
        search: what is tuned for it.
    """

    label: str
    settings: Mapping[str, Any]
    search: Search


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the variants that answer it.

    Args:
        question: in one sentence.
        source: where the paper asks it.
    """

    question: str
    source: str
    variants: tuple[Variant, ...]


def student_alone() -> Variant:
    """The control of every study, tuned as carefully as the others: by its learning rate."""
    return Variant(
        label="alone",
        settings={"distill.loss": {"name": "none"}},
        search=Search(key="optim.lr", factors=RATES),
    )


def with_loss(label: str, name: str, **settings: Any) -> Variant:
    """A variant that learns by a loss of `srd.method.losses.LOSSES`."""
    return Variant(
        label=label,
        settings={"distill.loss": {"name": name, **settings}},
        search=Search(key="distill.repr_weight", factors=WEIGHTS),
    )


def exchanged(label: str, **settings: Any) -> Variant:
    """The paper's loss with a part exchanged."""
    return with_loss(label, "ablation", **settings)


STUDIES: dict[str, Study] = {
    "normalisation": Study(
        question="Does the normalisation of both representations decide what the projector learns?",
        source="table 1 and figure 2 of the paper",
        variants=(
            student_alone(),
            *(exchanged(name, normalisation=name) for name in ("none", "l2", "group", "layer")),
            exchanged("batch (the paper)", normalisation="batch"),
        ),
    ),
    "distance": Study(
        question="Does the LogSum distance soften the gap between student and teacher?",
        source="table 2 of the paper",
        variants=(
            student_alone(),
            *(exchanged(name, distance=name) for name in ("l1", "l2", "correlation")),
            exchanged("logsum (the paper)", distance="logsum"),
        ),
    ),
    "alpha": Study(
        question="How does the power of the LogSum distance matter?",
        source="table 3 of the paper",
        variants=(
            student_alone(),
            *(exchanged(f"alpha {alpha}", alpha=float(alpha)) for alpha in range(1, 9)),
        ),
    ),
    "projector": Study(
        question="Must the projector learn, and is a linear one enough?",
        source="figure 3 of the paper; the first release trained with a frozen one, unnoticed",
        variants=(
            student_alone(),
            exchanged("frozen (first release)", projector="frozen"),
            exchanged("orthonormal", projector="orthonormal"),
            exchanged("linear (the paper)", projector="linear"),
            *(exchanged(f"mlp, {n} hidden", projector="mlp", hidden_layers=n) for n in (1, 2, 3)),
        ),
    ),
    "rivals": Study(
        question="How does the paper's loss stand beside others, with equal budgets and searches?",
        source="tables 4 to 6 of the paper compare what others report",
        variants=(
            student_alone(),
            Variant(
                label="kd",
                settings={"distill.loss": {"name": "kd"}},
                search=Search(key="distill.kl_weight", factors=WEIGHTS),
            ),
            with_loss("srd (the paper)", "srd"),
            *(with_loss(name, name) for name in ("vkd", "fitnet", "crd", "dkd", "dist", "kd_ls")),
        ),
    ),
}
