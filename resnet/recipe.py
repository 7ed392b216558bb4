"""Reads a torchdistill YAML file: checked first, then built."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic.dataclasses import dataclass

from resnet.nodes import MAP, PLAIN, Checked, Reader, Trusted
from resnet.pictures import read_by_list, use_fast_pixels
from resnet.places import Places
from resnet.registries import Registries
from resnet.trust import built, forbid_pickled_code
from resnet.wrapper_files import take_over
from srd.config.checks import check_average
from srd.config.documents import read_text
from srd.config.fields import Config, OpenFraction, Saving
from srd.config.layers import Amp, Layer, build
from srd.errors import UserError, nearest
from srd.strict import STRICT, PathText

SECTIONS = ("dependencies", "root_dir", "datasets", "models", "train", "test", "run")
# Where files are and how a machine is used: not part of the recipe.
NOT_RECIPE_KEYS = {
    "root",
    "root_dir",
    "num_workers",
    "pin_memory",
    "src_ckpt",
    "dst_ckpt",
    "log_freq",
}
NOT_RECIPE = (
    *(f"run.{field.name}" for field in dataclasses.fields(Saving)),
    "run.teacher_cache",
    "run.compile",
)


@dataclass(config=STRICT)
class Run(Saving):
    """Our own section of the file, `run:`; all of it optional."""

    amp: Amp = "off"
    channels_last: bool = False
    teacher_bf16: bool = False  # as `teacher.bf16`
    pixels: Literal["released", "fast"] = "released"  # how training pictures are made into views
    compile: bool | None = None  # None: on a GPU, the teacher of a long run
    deterministic: bool = False
    global_statistics: bool = True  # of the whole batch; off: each process's share of it
    ema_decay: OpenFraction | None = None  # of a moving average of the student
    ema_warmup: bool = False
    teacher_cache: PathText | None = None  # a folder: record what the teacher says, replay it
    cache_dtype: Literal["float32", "float16", "int8"] = "float16"  # float32 is exact


class Recipe(NamedTuple):
    """A configuration, built: torchdistill's sections, our `run`, the text, and its plain form."""

    config: dict[str, Any]
    run: Run
    text: str
    settings: dict[str, Any]


def read_recipe(
    path: str | Path, data_path: str | None = None, trusted: bool = False, output: str = "runs"
) -> Recipe:
    """Read, check and build a configuration.

    Args:
        data_path: takes the place of the file's `root_dir`, or of the `_root` of one of its data
            sets, as torchdistill's own files have it; so does the variable SRD_DATA.
        trusted: run whatever the file names. Otherwise it is held to `resnet.allowed`, and this process
            reads weights only, from here on (`resnet.trust.forbid_pickled_code`).
        output: the file may write there, and under the working folder.

    Raises:
        UserError: no file, malformed (with its line), an unknown section or `run` key, a name that
            a configuration may not use (with its line), or objects that cannot be built.
    """
    path = Path(path).expanduser()
    text = read_text(path)
    data_path = data_path or os.environ.get("SRD_DATA")
    places = Places(output, data_path)
    loader = Trusted(text, str(path)) if trusted else Checked(text, str(path), places)
    root = _mapping(loader)
    sections = _sections(loader, root)
    settings = _plain(root, Reader("", str(path)), {})
    if data_path:
        _put_data(sections, data_path, path)
    run = build(Run, [Layer(f"{path}, run", settings.get("run") or {})])
    check_average("run", run.ema_decay, run.ema_warmup)
    take_over()
    config = loader.value(root)
    if isinstance(loader, Checked):
        forbid_pickled_code()
        Registries(config, places).check()
        config = built(config, {})
    datasets = config.get("datasets")
    for dataset in datasets.values() if isinstance(datasets, dict) else ():
        read_by_list(dataset)
    if run.pixels == "fast":
        use_fast_pixels(config)
    return Recipe(config, run, text, settings)


def read_settings(path: str | Path) -> dict[str, Any]:
    """A configuration in its plain form (`Recipe.settings`); nothing in it is built or run."""
    loader = Reader(read_text(path), str(path))
    settings: dict[str, Any] = _plain(_mapping(loader), loader, {})
    return settings


def _mapping(loader: Reader) -> yaml.MappingNode:
    root = loader.compose()
    if not isinstance(root, yaml.MappingNode) or root.tag != MAP:
        raise UserError(f"{loader.source} must hold `key: value` lines")
    return root


def _sections(loader: Reader, root: yaml.MappingNode) -> dict[str, yaml.Node]:
    """The file's sections by their names."""
    sections = {key.value: value for key, value in root.value}
    for key, _ in root.value:
        if key.value not in SECTIONS:
            others = key.value in Config.__dataclass_fields__
            hint = " (deit/main.py reads such files)" if others else nearest(key.value, SECTIONS)
            raise UserError(f"{loader.at(key)}: unknown section {key.value[:100]!r}{hint}")
    for name in ("datasets", "models", "train", "test"):
        if name not in sections:
            raise UserError(
                f"{loader.source} has no section {name!r}: is it a torchdistill configuration?"
            )
    return sections


def _put_data(sections: dict[str, yaml.Node], data_path: str, path: Path) -> None:
    """Put the folder of the data in the place of the file's, and so of all aliases of it."""
    place = sections["root_dir"] if "root_dir" in sections else _only_root(sections["datasets"])
    if isinstance(place, yaml.ScalarNode):
        place.value, place.tag = data_path, PLAIN[0]
    elif isinstance(place, yaml.SequenceNode) and place.tag == "!join":
        place.value = [yaml.ScalarNode(PLAIN[0], data_path, place.start_mark, place.end_mark)]
    else:
        raise UserError(
            f"{path} has no `root_dir:` line, nor one `_root:` under datasets, whose place --data-path "
            "could take"
        )


def _only_root(datasets: yaml.Node) -> yaml.Node | None:
    """The `_root` of the data sets, as in torchdistill's own files; None without, or of several."""
    entries = datasets.value if isinstance(datasets, yaml.MappingNode) else []
    roots = {
        id(value): value
        for _, dataset in entries
        if isinstance(dataset, yaml.MappingNode)
        for key, value in dataset.value
        if key.value == "_root"
    }
    return next(iter(roots.values())) if len(roots) == 1 else None


def _plain(node: yaml.Node, loader: Reader, known: dict[int, Any]) -> Any:
    """A document as plain values, tags as keys, without what is not part of the recipe."""
    if id(node) not in known:
        known[id(node)] = _plain_value(node, loader, known)
    return known[id(node)]


def _plain_value(node: yaml.Node, loader: Reader, known: dict[int, Any]) -> Any:
    if isinstance(node, yaml.MappingNode):
        pairs = {
            str(key.value): _plain(value, loader, known)
            for key, value in node.value
            if key.value not in NOT_RECIPE_KEYS
        }
        return pairs if node.tag in PLAIN else {node.tag: pairs}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, loader, known) for item in node.value]
    return loader.value(node) if node.tag in PLAIN else f"{node.tag} {node.value}"
