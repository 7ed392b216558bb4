"""A run that goes on under other settings (`--extend`): what may change, and where it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srd.errors import UserError
from srd.run.state import MOST, Misfit

# Settings that a run cannot change on its way, and why.
FIXED = {
    "identity.model": "it would be another network",
    "identity.trained": "it would be another network",
    "identity.num_classes": "the head belongs to its classes",
    "model.name": "it would be another network",
    "model.init": "a run that goes on has its weights",
    "optim.name": "what an optimizer remembers is its own",
    "optim.decay_all": "what an optimizer remembers is its own",
    "data.unlabelled": "it would have another head, and another measure",
}
# What says which images an epoch has, and in which order: a part of an epoch belongs to the old ones.
ORDER = (
    "seed", "train.batch_size", "data.dataset", "data.val_fraction", "data.images_per_class",
    "identity.seed", "identity.train_images", "cache.epochs", "datasets.",
    "train.train_data_loader.",
)  # fmt: skip
# What says how a model is measured: the best of before was measured in another way.
MEASURE = (
    "data.dataset", "data.val_fraction", "data.mean", "data.std", "data.eval_crop",
    "data.eval_interpolation", "model.image_size", "datasets.", "train.val_data_loader.",
)  # fmt: skip
NUMBERS = ("from_epoch", "step", "updates", "images")  # of an extension


class Pace(NamedTuple):
    """How long a run is from now on: epochs, steps of an epoch, images of a step."""

    epochs: int
    steps: int
    batch_size: int


def check_changes(changed: Sequence[str]) -> None:
    """Raise a UserError for a change that no run can make on its way.

    Args:
        changed: `key: old -> new`, as `srd.config.layers.differences` says it.
    """
    for change in changed:
        if reason := FIXED.get(_key(change)):
            raise UserError(
                f"--extend cannot change {change} ({reason}): use another --name, and --init to "
                "start from this run's weights"
            )


def extend(state: Mapping[str, Any], changed: Sequence[str], pace: Pace) -> dict[str, Any]:
    """A checkpoint's state as the one to go on from under other settings.

    An epoch that was finished stays finished, and is measured again. One that was stopped in goes on
    where it was, unless other images or batches belong to it now: then the next one begins.

    Args:
        changed: what differs, `key: old -> new`.

    Raises:
        UserError: no epoch is left to train.
    """
    check_changes(changed)
    position = dict(state["position"])
    before = _pace_of(state, pace)
    epoch, step = position["epoch"], position["step"]
    others = before.steps != pace.steps or _any(changed, ORDER)
    if step >= before.steps:
        position["step"] = pace.steps
        sums = position.get("sums") or {}
        position["sums"] = {name: v * pace.steps / before.steps for name, v in sums.items()}
        epoch, step = epoch + 1, 0
    elif step and others:
        epoch, step = epoch + 1, 0
        position |= {"epoch": epoch, "step": 0, "sums": {}}
    if epoch >= pace.epochs:
        raise UserError(
            f"--extend: the run is at the end of its epoch {epoch}, and {pace.epochs} are asked for: "
            "give more --epochs"
        )
    if _any(changed, MEASURE):
        position |= {"best_acc1": -1.0, "best_epoch": -1}
    record = {
        "from_epoch": epoch,
        "step": step,
        "updates": position["updates"],
        "images": images_trained(state.get("extended", []), position["updates"], before.batch_size),
        "changed": list(changed),
    }
    return {**state, "position": position, "extended": [*state.get("extended", []), record]}


def lines(state: Mapping[str, Any], before: Mapping[str, Any], epochs: int) -> list[str]:
    """What an extension changed, for people, a line each.

    Args:
        state, before: the state that `extend` gave, and the one that it was given.
    """
    record = state["extended"][-1]
    told = [f"extended in epoch {record['from_epoch'] + 1}: {c}" for c in record["changed"]]
    old, new = before["position"], state["position"]
    if new["epoch"] > old["epoch"]:
        told.append(
            f"epoch {old['epoch'] + 1} was stopped after {old['step']} steps, and the images or the "
            f"batches are others now: the run goes on with epoch {new['epoch'] + 1}"
        )
    if new.get("best_epoch") != old.get("best_epoch"):
        told.append("images are measured in another way now: the best epoch is looked for anew")
    told.append(
        f"the schedule of the learning rate spans all {epochs} epochs, as if it had from the start"
    )
    return told


def expected_updates(
    extended: Sequence[Mapping[str, Any]], *, epoch: int, step: int, steps: int
) -> int:
    """The updates of a run that has come to a step of an epoch; `steps`: of an epoch, from now on."""
    if not extended:
        return epoch * steps + step
    last = extended[-1]
    return last["updates"] + (epoch - last["from_epoch"]) * steps + step - last["step"]


def images_trained(extended: Sequence[Mapping[str, Any]], updates: int, batch_size: int) -> int:
    """Images of all updates; `batch_size`: since the last extension."""
    if not extended:
        return updates * batch_size
    return extended[-1]["images"] + (updates - extended[-1]["updates"]) * batch_size


def check_extended(extended: Any) -> None:
    """Raise a Misfit unless a checkpoint's `extended` is a list of what `extend` notes."""
    if not isinstance(extended, (list, tuple)):
        raise Misfit("extended is no list")
    for number, record in enumerate(extended):
        if not isinstance(record, Mapping):
            raise Misfit(f"extended.{number} is no mapping")
        for name in NUMBERS:
            value = record.get(name)
            if type(value) is not int or not 0 <= value <= MOST:
                raise Misfit(f"extended.{number}.{name} is no number from 0")
        changed = record.get("changed")
        if not isinstance(changed, list) or not all(isinstance(c, str) for c in changed):
            raise Misfit(f"extended.{number}.changed is no list of texts")


def as_comments(extended: Sequence[Mapping[str, Any]]) -> str:
    """The extensions as comments of a YAML file."""
    told = (f"epoch {r['from_epoch'] + 1}: {c}" for r in extended for c in r["changed"])
    return "".join(f"# extended in {' '.join(line.split())}\n" for line in told)


def _pace_of(state: Mapping[str, Any], now: Pace) -> Pace:
    """Of the run until now; of earlier versions' checkpoints, as far as their settings say it."""
    config, position = state["config"], state["position"]
    train, images = config.get("train"), (config.get("identity") or {}).get("train_images")
    told = train.get("batch_size") if isinstance(train, Mapping) else None
    batch_size = _count(state.get("batch_size")) or _count(told) or now.batch_size
    steps = _count(state.get("steps")) or (_count(images) or 0) // batch_size or now.steps
    return Pace(position["epoch"] + 1, steps, batch_size)


def _count(value: Any) -> int | None:
    """A number from 1; None where it is something else."""
    return value if type(value) is int and 0 < value <= MOST else None


def _key(change: str) -> str:
    return change.partition(":")[0]


def _any(changed: Sequence[str], keys: tuple[str, ...]) -> bool:
    """Whether a change is of one of these keys, or of a section of them."""
    exact = {key for key in keys if not key.endswith(".")}
    sections = tuple(key for key in keys if key.endswith("."))
    names = [_key(change) for change in changed]
    return any(name in exact or name.startswith(sections) for name in names)
