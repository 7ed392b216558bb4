"""A whole training in one line of Python: `srd.train(student=..., teacher=..., data=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srd.config.flags import FLAGS, SWITCHES
from srd.config.layers import Layer, nested, read_yaml
from srd.errors import UserError, nearest
from srd.files.locate import recipe_file
from srd.run.folder import RunFolder
from srd.streams import lasting
from srd.training.build import Trained
from srd.training.presets import configure_training
from srd.training.train import train as train_configured

SHORT = {"student": "model.name", "data": "data.path"} | {
    name: field for name, (field, _) in SWITCHES.items()
}


def train(
    student: str | None = None,
    *,
    trained: Trained = "student",
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Path:
    """Train as `deit/main.py --train_student` does; returns the run's folder.

    Args:
        student: `"tiny"`, `"small"`, `"base"` or any timm model.
        trained: `"teacher"` trains the teacher instead.
        config: a YAML file of settings; keywords win over it.
        settings: any configuration fields by dotted name, such as `{"optim.clip_norm": 1.0}`.
        keywords: `teacher=`, `data=` (a folder), and the command line's flags with underscores:
            `epochs=`, `batch_size=`, `lr=`, `distillation=`, `teacher_checkpoint=`, `output=`, ...

    Raises:
        UserError: wrong input; Stopped and RunFailed as `srd.training.train.train`.
    """
    if not isinstance(config, str | Path | None):
        raise UserError(f"config={config!r}: expected the name of a YAML file")
    if not isinstance(settings, Mapping | None):
        raise UserError(f"settings={settings!r}: expected fields by name, {{'optim.lr': 0.001}}")
    fields = {name.replace("-", "_"): field for name, (field, _) in FLAGS.items()} | SHORT
    shared = [Layer(str(config), read_yaml(recipe_file(config)))] if config is not None else []
    given = []
    for name, value in {"student": student, **keywords}.items():
        if name not in fields:
            raise UserError(f"train() has no argument {name!r}{nearest(name, fields)}")
        if value is not None:
            plain = str(value) if isinstance(value, Path) else value
            given.append(Layer(f"{name}=", nested(fields[name], plain)))
    for dotted, value in (settings or {}).items():
        given.append(Layer(f"settings[{dotted!r}]", nested(dotted, value)))
    built, notes = configure_training(shared, given, trained)
    with lasting():  # the training outlasts a notebook's output
        train_configured(built, trained, notes)
    return RunFolder(built.output, str(built.name)).path
