"""The settings that a run was made with, for what is done with it afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from srd.config.layers import Layer, nested, read_yaml
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
    result = folder.read_result() or {}
    if result.get("trained") == "teacher":
        layers.append(Layer(str(folder.result), nested("model.name", result.get("model"))))
    return layers
