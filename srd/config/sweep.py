"""A sweep: every combination of the values given for some settings, each a run of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from srd.config.documents import load
from srd.config.flags import FLAGS
from srd.config.layers import Layer, nested
from srd.errors import UserError

NOT_SWEPT = ("name", "output", "resume", "extend")
MOST_RUNS = 1_000
# Settings that decide what a teacher sees and what is kept of it: a teacher cache is of one of each.
OF_ONE_CACHE = (
    "seed", "amp", "model.image_size", "data.", "augment.", "teacher.", "train.batch_size",
    "cache.dtype", "cache.top_logits",
)  # fmt: skip
NOT_CACHED = ("data.workers", "augment.label_smoothing", "teacher.evaluate")


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: its settings by dotted name, and what its name ends in."""

    values: dict[str, Any]
    suffix: str

    @property
    def layers(self) -> list[Layer]:
        """The settings, each with its source."""
        return [Layer(f"--sweep {key}", nested(key, value)) for key, value in self.values.items()]


def combinations(words: Sequence[str], given: Sequence[str]) -> list[Combination]:
    """Every combination of `key=value,value,...`, the first key slowest.

    Args:
        words: as they stand after `--sweep`; a flag's name means its field.
        given: the fields that flags or `--set` set.

    Raises:
        UserError: no such word, a value or a field twice, a field that no sweep can move, or too
            many runs.
    """
    lists = dict(_read(words))
    if len(lists) < len(words):
        raise UserError("--sweep: a setting is named twice; give its values together, with commas")
    for key in lists:
        if key in given:
            raise UserError(f"--sweep {key}: it is also set by hand; leave one of the two out")
    count = 1
    for values in lists.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise UserError(f"--sweep: {count} runs; {MOST_RUNS} are the most")
    short = _short(list(lists))
    found = []
    for chosen in product(*lists.values()):
        settings = dict(zip(lists, chosen, strict=True))
        ends = [f"{short[key]}{_word(value)}" for key, value in _seed_last(settings)]
        found.append(Combination(settings, "_".join(ends)))
    names = [combination.suffix for combination in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--sweep: two runs would be called {twice[0]}: give each value once")
    return found


def check_one_cache(runs: Sequence[Combination]) -> None:
    """Raise a UserError for runs that would meet in a teacher cache, and differ in what it holds."""
    for key, first in runs[0].values.items():
        differs = any(run.values[key] != first for run in runs)
        if differs and key.startswith(OF_ONE_CACHE) and key not in NOT_CACHED:
            raise UserError(
                f"--sweep {key}: a teacher cache is of one {key}; leave --teacher-cache out, or "
                "give each value a command and a cache of its own"
            )


def _read(words: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    for word in words:
        key, separator, text = word.partition("=")
        key = FLAGS.get(key.replace("_", "-"), (key,))[0]
        if not separator or not key or not text:
            raise UserError(f"--sweep {word}: expected setting=value,value,...")
        if key in NOT_SWEPT:
            raise UserError(f"--sweep {key}: that is no setting of the recipe")
        values = load(f"[{text}]", f"--sweep {key}")
        if not isinstance(values, list) or not values:
            raise UserError(f"--sweep {word}: expected setting=value,value,...")
        yield key, values


def _short(keys: list[str]) -> dict[str, str]:
    """The last parts of the names, where they tell them apart."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    parts = list(last.values())
    return {key: part if parts.count(part) == 1 else key for key, part in last.items()}


def _seed_last(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """So that names without it are names of what the seeds have in common."""
    return sorted(values.items(), key=lambda item: item[0] == "seed")


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "none"
