"""What a run says of the student, or the teacher, that it trained: enough to use it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor

from srd.config.fields import NOT_RECIPE, Config
from srd.config.layers import Layer, read_yaml, to_mapping
from srd.config.reading import read_config
from srd.data.inputs import preprocessing
from srd.data.labels import class_names, is_imagenet
from srd.export.description import Description
from srd.export.origin import Source
from srd.files.weights import split


def describe_run(source: Source) -> tuple[Description, Mapping[str, Tensor]] | None:
    """The timm model that a run of ours trained, with its weights; None for other students and files.

    Raises:
        UserError: the run's settings do not fit.
    """
    facts = source.facts
    if facts.get("num_classes") is None:  # no run, or one of torchdistill's recipes
        return None
    if (config := run_config(source)) is None:
        return None
    trained_teacher = facts.get("trained") == "teacher"
    architecture = (config.teacher.name if trained_teacher else config.model.name).split(".")[0]
    if not timm.is_model(architecture):
        return None
    names = class_names(facts["num_classes"], facts.get("class_names"))
    images = preprocessing(config.data, config.model.image_size)
    about = about_run(source, config, architecture, names)
    description = Description(
        architecture, facts["num_classes"], images, names, about, recipe_of(config)
    )
    return description, split(source.weights).student


def run_config(source: Source) -> Config | None:
    """The configuration of the run that the weights come from, if they do."""
    if source.settings is not None and "model" in source.settings:
        return read_config([Layer(str(source.path), source.settings)])
    if source.config_file is not None:
        values = read_yaml(source.config_file)
        if "model" in values:
            return read_config([Layer(str(source.config_file), values)])
    return None


def recipe_of(config: Config | None) -> dict[str, Any]:
    """The settings that make the student what it is: no folders, devices or file names."""
    settings = to_mapping(config) if config else {}
    for dotted in NOT_RECIPE:
        *sections, key = dotted.split(".")
        inner = settings
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(key, None)
    return settings


def about_run(
    source: Source, config: Config | None, title: str, names: tuple[str, ...] | None
) -> dict[str, str]:
    """What a model card says: model, accuracy, teacher, method, data."""
    about, facts = {"Model": title, "Accuracy": source.measured}, source.facts
    if isinstance(distance := facts.get("best_distance"), (int, float)):
        del about["Accuracy"]
        about["Features"] = f"{distance:.4f} from the teacher's on {facts.get('images')} pictures"
    if config is None:
        return about
    if facts.get("trained") == "student":
        loss = config.distill.loss
        about["Teacher"] = "none" if loss.name == "none" else config.teacher.name
        match = getattr(loss, "match", None)
        about["Method"] = loss.name + (f" ({match})" if match else "")
    data = {"digits": "scikit-learn's digits", "datasets": "a Hugging Face data set"}.get(
        config.data.dataset, "a folder of images"
    )
    data = "ImageNet-1k" if is_imagenet(names) else data
    count = facts.get("train_images")
    about["Training data"] = data + (f", {count} images" if count else "")
    about["Training"] = f"{config.train.epochs} epochs, batch {config.train.batch_size}"
    return about
