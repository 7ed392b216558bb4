"""The paper's questions, answered on your data: `srd study normalisation --quick`.

Trains every variant of a study with every seed, chooses epochs and searched settings on images held
out of the training split, tests each run once on the others, and leaves a page, a plot and all
numbers in <output>/<study>/. Runs that are there are taken up; a stopped study goes on.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.config.flags import FLAGS
from srd.config.layers import Layer, flatten, nested, read_yaml, setting
from srd.errors import UserError, nearest
from srd.files.locate import recipe_file
from srd.installed import need_extra
from srd.printable import as_markdown
from srd.study.studies import CNN, SEARCH_SEED, STUDIES, TRANSFORMER, Study, with_teachers

RECIPE = "configs/digits/study.yaml"
SEEDS, QUICK_SEEDS = (0, 1, 2, 3, 4), (0, 1)
MOST_SEEDS = 100
QUICKER = 4  # a quick study has so many times fewer epochs
WEIGHTS = tuple(f"distill.{w}" for w in ("ce_weight", "kl_weight", "repr_weight", "temperature"))
TEACHERS = {"cnn": CNN, "transformer": TRANSFORMER}  # by flag, the variants that they are for
# What the study sets.
TAKEN = ("seed", "name", "resume", "extend", "slim", "cache.", "train.keep_best")
OF_TEACHERS = ("teacher.name", "teacher.checkpoint", "teacher.recipe")


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd study", description=__doc__, allow_abbrev=False)
    parser.add_argument("study", metavar="NAME", help="of a study; `list` shows all")
    parser.add_argument("--config", metavar="FILE", default=RECIPE, help=f"default {RECIPE}")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, a quarter of the epochs, no search"
    )
    parser.add_argument("--seeds", metavar="N,N,...", help="default 0,1,2,3,4")
    for kind in TEACHERS:
        parser.add_argument(
            f"--{kind}", metavar="NAME=FILE", help=f"equivariance: a {kind} that knows your data"
        )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any field")
    for name, (field, text) in FLAGS.items():
        if not field.startswith((*TAKEN, "distill.")):
            parser.add_argument(f"--{name}", dest=field, metavar=name.upper(), help=text)
    return parser


def run(arguments: Sequence[str]) -> None:
    """Answer one of the paper's questions on your data.

    Raises:
        UserError: no such study, or a configuration that a run could not have.
        Stopped, RunFailed: as `srd train`.
    """
    flags = parse_strictly(make_parser(), arguments)
    if flags.study == "list":
        if len(arguments) > 1:
            raise UserError("srd study list takes nothing else: leave the other arguments out")
        for name, study in STUDIES.items():
            print(f"{name:15} {study.question}")
        return
    if flags.study not in STUDIES:
        raise UserError(
            f"unknown study {flags.study!r}{nearest(flags.study, STUDIES)}: one of "
            f"{', '.join(STUDIES)}"
        )
    need_extra("report", "matplotlib", what="pictures of studies")
    shared = [Layer(flags.config, read_yaml(recipe_file(flags.config)))]
    layers = given(flags, STUDIES[flags.study])
    if flags.quick:
        layers += quick(shared, layers)
    few = QUICK_SEEDS if flags.quick else SEEDS
    seeds = few if flags.seeds is None else read_seeds(flags.seeds)
    study = chosen(flags, STUDIES[flags.study])
    answer(flags.study, study, shared, layers, seeds, search=not flags.quick, arguments=arguments)


def chosen(flags: Any, study: Study) -> Study:
    """The study with the teachers that were given, where its variants differ in them.

    Raises:
        UserError: they are given to another, not given for other data, or no NAME=FILE.
    """
    labels = {variant.label for variant in study.variants}
    places = {}
    for kind, label in TEACHERS.items():
        text = getattr(flags, kind)
        if text is None:
            if label in labels and flags.config != RECIPE:
                raise UserError(
                    f"--config {flags.config}: this study needs a teacher of each kind that knows its "
                    "classes: --cnn NAME=FILE --transformer NAME=FILE (FILE may be a run)"
                )
            continue
        name, _, place = text.partition("=")
        if label not in labels:
            raise UserError(f"--{kind} {text}: has no effect in this study; leave it out")
        if not (name and place):
            raise UserError(f"--{kind} {text}: expected NAME=FILE, resnet10t=runs/my_teacher")
        places[label] = (name, place)
    return with_teachers(study, places)


def given(flags: Any, study: Study) -> list[Layer]:
    """A layer for every flag that was given.

    Raises:
        UserError: one that the study sets itself.
    """
    own_teachers = any("teacher.name" in variant.settings for variant in study.variants)
    layers = [
        Layer(f"--{name}", nested(field, value))
        for name, (field, _) in FLAGS.items()
        if (value := getattr(flags, field, None)) is not None
    ]
    layers += [Layer(f"--set {text}", setting(text)) for text in flags.set]
    for source, values in layers:
        for key in flatten(values):
            if key.startswith(TAKEN) or (key.startswith("distill.") and key not in WEIGHTS):
                raise UserError(f"{source}: {key} has no effect, the study sets it; leave it out")
            if own_teachers and key in OF_TEACHERS:
                raise UserError(
                    f"{source}: {key} has no effect in this study, whose teachers are --cnn and "
                    "--transformer"
                )
    return layers


def quick(shared: Sequence[Layer], layers: Sequence[Layer]) -> list[Layer]:
    """A quarter of the configuration's epochs and of its warm-up, and a place of its own.

    What is given counts more.
    """
    from srd.config.reading import read_config

    config = read_config([*shared, *layers])
    there = {key for layer in layers for key in flatten(layer.values)}
    values: dict[str, Any] = {"output": str(Path(config.output) / "quick")}
    if "train.epochs" not in there:
        values["train.epochs"] = max(1, config.train.epochs // QUICKER)
        values["optim.warmup_epochs"] = config.optim.warmup_epochs / QUICKER
    return [Layer("--quick", nested(k, value)) for k, value in values.items() if k not in there]


def read_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
        raise UserError(f"--seeds {text[:100]}: expected whole numbers from 0, commas between")
    seeds = tuple(int(part) for part in text.split(","))
    if len(set(seeds)) < len(seeds) or len(seeds) > MOST_SEEDS:
        raise UserError(f"--seeds {text[:100]}: expected different numbers, {MOST_SEEDS} at most")
    if SEARCH_SEED in seeds:
        raise UserError(f"--seeds {text[:100]}: {SEARCH_SEED} is the search's own; take another")
    return seeds


def answer(
    name: str,
    study: Study,
    shared: Sequence[Layer],
    layers: Sequence[Layer],
    seeds: Sequence[int],
    *,
    search: bool,
    arguments: Sequence[str],
) -> None:
    """Train, select, test; write the page, the plot and the numbers."""
    from srd.files.checkpoint import write_text, write_whole
    from srd.run.provenance import provenance
    from srd.study.results import page, picture, shown, table
    from srd.study.runs import Budget, Runs

    runs = Runs(name, study, shared, Budget(seeds=seeds, search=search, layers=layers))
    runs.check()
    results = list(runs.all())
    data = runs.base.data
    images = results[0][1][0].images
    where = data.dataset + (f" in {as_markdown(Path(data.path).name)}" if data.path else "")
    few = (
        f", {data.images_per_class} training images of each class" if data.images_per_class else ""
    )
    text = page(
        name,
        study,
        results,
        command=shlex.join(["srd", "study", *arguments]),
        data=f"Data: {where}{few}; tested on {images} images. Student "
        f"{as_markdown(runs.base.model.name)}, taught by {as_markdown(runs.teachers())}.",
        made_with=provenance(),
        picture=f"{name}.png",
        search=search,
    )
    numbers = {variant.label: [asdict(run) for run in tested] for variant, tested in results}
    plot = picture(name, study, results)
    write_text(runs.output / f"{name}.json", json.dumps(numbers, indent=2))
    write_whole(runs.output / f"{name}.png", lambda file: file.write(plot))
    write_text(runs.output / f"{name}.md", text)
    print(shown(f"\n{table(study, results)}\n\n{runs.output / name}.md"))
