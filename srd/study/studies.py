"""The questions, by name: what is exchanged in one recipe, what is looked at, how each variant is tuned.

A new one is an entry in `STUDIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Shown = Literal["selected", "effective_rank", "correlation", "shift_error"]

WEIGHTS = (0.25, 1.0, 4.0)  # factors of a searched setting, the same number for everybody
RATES = (0.5, 1.0, 2.0)
SEARCH_SEED = 1000  # of the runs that choose a setting; no reported run has it
ALONE: Mapping[str, Any] = {"distill.loss": {"name": "none"}}
PAPER: Mapping[str, Any] = {"distill.loss": {"name": "ablation"}}  # of which others exchange a part
KD: Mapping[str, Any] = {"distill.loss": {"name": "kd"}}
SHARED = {"alone": ALONE, "kd": KD, "paper": PAPER}  # by folder: variants of several studies
CNN, TRANSFORMER = "from a CNN", "from a transformer"  # variants that differ in their teachers


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
        search: what is tuned for it; None: nothing.
        reported: what others report of it, where the study has a column for that.
    """

    label: str
    settings: Mapping[str, Any]
    search: Search | None
    reported: str = ""

    @property
    def is_taught(self) -> bool:
        """Whether a teacher has a part in it."""
        return self.settings != ALONE

    @property
    def has_authors(self) -> bool:
        """Whether its weight is one that its authors published."""
        return self.settings not in (ALONE, KD)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the variants that answer it.

    Args:
        question: in one sentence.
        source: where the paper asks it.
        shows: what its picture shows, and its table beside the accuracies.
        over_epochs: whether the picture shows it at every evaluation, not after the last alone.
        runs_of: the study whose runs these are; None: its own.
        published: whether variants also run as their authors published them, not searched.
        reported: what the accuracies are of that others report; empty: none are shown.
    """

    question: str
    source: str
    variants: tuple[Variant, ...]
    shows: Shown = "selected"
    over_epochs: bool = False
    runs_of: str | None = None
    published: bool = False
    reported: str = ""


def student_alone() -> Variant:
    """The control of every study, tuned as carefully as the others: by its learning rate."""
    return Variant(
        label="alone",
        settings=ALONE,
        search=Search(key="optim.lr", factors=RATES),
    )


def logits_alone() -> Variant:
    """What every other taught variant has too: what the teacher's logits do without a projector."""
    return Variant(label="kd", settings=KD, search=None)


def logits_searched() -> Variant:
    """The same, tuned as carefully as the others: by the weight that those leave as it is."""
    search = Search(key="distill.kl_weight", factors=WEIGHTS)
    return replace(logits_alone(), label="kd, its weight searched", search=search)


def as_published(variant: Variant) -> Variant:
    """It, with what is searched left as the configuration and the loss's authors have it."""
    label = f"{variant.label.partition(' (')[0]} (published)"
    return replace(variant, label=label, search=None)


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


def paper(part: str) -> Variant:
    """The paper's loss, called by the part that the study exchanges; to the bit the loss `srd`."""
    return exchanged(f"{part} (the paper)")


def taught_by(label: str, teacher: str, **place: str) -> Variant:
    """The paper's loss with another teacher.

    Args:
        place: its `recipe`, a YAML file that trains it once, or its `checkpoint`.
    """
    settings: dict[str, Any] = {"teacher.name": teacher, "distill.loss": {"name": "srd"}}
    settings |= {"teacher.recipe": None, "teacher.checkpoint": None}
    settings |= {f"teacher.{key}": value for key, value in place.items()}
    return Variant(
        label=label,
        settings=settings,
        search=Search(key="distill.repr_weight", factors=WEIGHTS),
    )


def with_teachers(study: Study, places: Mapping[str, tuple[str, str]]) -> Study:
    """The study with other teachers.

    Args:
        places: of the label of a variant, the teacher's name and its checkpoint.
    """
    variants = [
        taught_by(v.label, places[v.label][0], checkpoint=places[v.label][1])
        if v.label in places
        else v
        for v in study.variants
    ]
    return replace(study, variants=tuple(variants))


def views(count: int | None) -> Variant:
    """The paper's loss on views that come again after so many epochs; None: never."""
    label = "every epoch new (the paper)"
    if count is not None:
        label = f"{count} view{'s' * (count > 1)} of an image"
    settings = {"distill.loss": {"name": "srd"}, "cache.epochs": count}
    return Variant(label=label, settings=settings, search=None)


NORMALISATIONS = (
    student_alone(),
    logits_alone(),
    logits_searched(),
    *(exchanged(name, normalisation=name) for name in ("none", "l2", "group", "layer")),
    paper("batch"),
)
# Tian et al., ICLR 2020 (alone, kd, fitnet, crd); the authors' own: Zhao et al., CVPR 2022 (dkd),
# Huang et al., NeurIPS 2022 (dist), Sun et al., CVPR 2024 (kd_ls), Liu et al., ICCV 2021 (ickd, with KL).
# Attention transfer compares positions, of which the last map of a small image has one.
RIVALS = {
    "vkd": "",
    "fitnet": "73.5",
    "crd": "75.5",
    "dkd": "76.3",
    "dist": "76.3",
    "kd_ls": "76.6",
    "ickd": "75.5",
}
WITHOUT_PROJECTOR = exchanged("none", projector="none")  # where the widths agree
PROJECTORS = (
    student_alone(),
    logits_alone(),
    logits_searched(),
    WITHOUT_PROJECTOR,
    exchanged("frozen (first release)", projector="frozen"),
    exchanged("orthonormal", projector="orthonormal"),
    paper("linear"),
    *(exchanged(f"mlp, {n} hidden", projector="mlp", hidden_layers=n) for n in (1, 2, 3)),
)

STUDIES: dict[str, Study] = {
    "normalisation": Study(
        question="Does the normalisation of both representations decide what the projector learns?",
        source="table 1 of the paper",
        variants=NORMALISATIONS,
    ),
    "spectrum": Study(
        question="Do the projector's singular values fall under each normalisation?",
        source="figure 2 of the paper",
        variants=NORMALISATIONS,
        shows="effective_rank",
        over_epochs=True,
        runs_of="normalisation",
    ),
    "distance": Study(
        question="Does the LogSum distance soften the gap between student and teacher?",
        source="table 2 of the paper",
        variants=(
            student_alone(),
            logits_alone(),
            logits_searched(),
            *(exchanged(name, distance=name) for name in ("l1", "l2", "correlation")),
            paper("logsum"),
        ),
    ),
    "alpha": Study(
        question="How does the power of the LogSum distance matter?",
        source="table 3 of the paper",
        variants=(
            student_alone(),
            logits_alone(),
            logits_searched(),
            *(exchanged(f"alpha {alpha}", alpha=float(alpha)) for alpha in (1, 2, 3)),
            paper("alpha 4"),
            *(exchanged(f"alpha {alpha}", alpha=float(alpha)) for alpha in (5, 6, 7, 8)),
        ),
    ),
    "projector": Study(
        question="Must the projector learn, and is a linear one enough?",
        source="figure 3 of the paper; the first release trained with a frozen one, unnoticed",
        variants=PROJECTORS,
    ),
    "decorrelation": Study(
        question="Does the projector decorrelate what goes in from what comes out?",
        source="figure 3 of the paper",
        variants=PROJECTORS,
        shows="correlation",
        over_epochs=True,
        runs_of="projector",
    ),
    "equivariance": Study(
        question="Does a transformer learn to move with its images from a convolutional teacher?",
        source="table 7 of the paper",
        variants=(
            student_alone(),
            taught_by(CNN, "regnety_002", recipe="configs/digits/teacher.yaml"),
            taught_by(TRANSFORMER, "vit_tiny_patch16_224", recipe="configs/digits/vit.yaml"),
        ),
        shows="shift_error",
    ),
    "views": Study(
        question="How many views of an image does a student need, if a cache keeps the teacher's words?",
        source="not of the paper: the price of `cache.epochs`",
        variants=(
            replace(student_alone(), search=None),  # as nothing is searched for the others
            *(views(count) for count in (1, 3, 10, 30, None)),
        ),
    ),
    "rivals": Study(
        question="How does the paper's loss stand beside others, with equal budgets and searches?",
        source="tables 4 to 6 of the paper compare what others report",
        variants=(
            replace(student_alone(), reported="72.5"),
            replace(logits_alone(), reported="73.3"),
            logits_searched(),
            exchanged("srd"),
            *(replace(with_loss(name, name), reported=top1) for name, top1 in RIVALS.items()),
        ),
        published=True,
        reported="CIFAR-100, ResNet-32x4 teaching ResNet-8x4",
    ),
}
