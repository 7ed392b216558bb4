"""The settings that a run was made with, for what is done with it afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from srd.config.layers import Layer, nested, read_yaml
from srd.errors import UserError
from srd.files.checkpoint import load_file
from srd.run.folder import RunFolder


def own_settings(run: str | Path) -> list[Layer]:
    """What the run in a folder was made with, its teacher as the model where it trained one.

    [] where `run` is no run's folder.

    Raises:
        UserError: its configuration cannot be read.
    """
    folder = RunFolder(run)
    if not os.path.isfile(folder.config):  # unlike pathlib's, this never raises
        return []
    layers = [Layer(str(folder.config), read_yaml(folder.config))]
    facts = identity_of(folder)
    if facts.get("trained") == "teacher":
        layers.append(Layer(str(folder.path), nested("model.name", facts.get("model"))))
    return layers


def identity_of(folder: RunFolder) -> Mapping[str, Any]:
    """What a run trains, by its result, or by a checkpoint where it has not finished; {} where neither
    says it."""
    if (result := folder.read_result()) is not None:
        return result
    for file in (folder.best, folder.last):
        with suppress(UserError):  # damaged: the other one may say it
            config = load_file(file).get("config")
            identity = config.get("identity") if isinstance(config, Mapping) else None
            if isinstance(identity, Mapping):
                return identity
    return {}
