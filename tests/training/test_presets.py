"""Which preset a training takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srd.config.fields import Config
from srd.config.layers import Layer, nested
from srd.errors import UserError
from srd.training import presets
from srd.training.presets import configure_training

Pictures = Callable[..., Path]
COUNTS = {f"{split}/{name}": 20 for split in ("train", "val") for name in ("cat", "dog")}


def configured(*shared: Layer, trained: Any = "student", **given: Any) -> Config:
    layers = [Layer(f"--{key}", nested(key.replace("__", "."), v)) for key, v in given.items()]
    return configure_training(list(shared), layers, trained).config


def test_few_pictures_get_small_unless_a_file_or_a_flag_says_otherwise(
    make_images: Pictures,
) -> None:
    data = str(make_images(COUNTS))
    config = configured(data__path=data, device="cpu")
    assert config.preset == "small"
    assert (config.train.batch_size, config.train.epochs) == (
        20,
        20,
    ) or config.train.batch_size == 20
    for other in (
        configured(data__path=data, preset="imagenet"),
        configured(Layer("file", {"data": {"path": data}})),
        configured(data__dataset="digits"),
    ):
        assert (other.train.batch_size, other.train.epochs, other.optim.lr) == (256, 300, 5e-4)
    assert configured(Layer("file", {"preset": "small"}), data__path=data).preset == "small"


def test_what_is_set_wins_and_the_rest_follows_it(make_images: Pictures) -> None:
    data = str(make_images(COUNTS))
    file = Layer("file", {"preset": "small", "augment": {"mixup": 0.5}})
    config = configured(file, data__path=data, train__epochs=30, train__batch_size=8)
    assert (config.train.batch_size, config.train.epochs, config.optim.warmup_epochs) == (
        8,
        30,
        2.0,
    )
    assert (config.augment.mixup, config.augment.cutmix) == (0.5, 0.0)
    with pytest.raises(UserError, match="as long as the run"):
        configured(data__path=data, train__epochs=3, optim__warmup_epochs=3)


def test_many_pictures_get_the_papers_recipe(
    make_images: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(make_images(COUNTS))
    for few in (40, 20):  # counted, and not even counted
        monkeypatch.setattr(presets, "FEW", few)
        assert configured(data__path=data).preset is None
    monkeypatch.setattr(presets, "FEW", 41)
    assert configured(data__path=data).preset == "small"


def test_learned_weights_get_smaller_steps(make_images: Pictures) -> None:
    data = str(make_images(COUNTS))
    anew = configured(data__path=data, model__name="test_vit")
    for other in (
        configured(data__path=data, model__name="test_vit.r160_in1k"),
        configured(data__path=data, model__name="test_vit", model__init="pretrained"),
        configured(
            data__path=data, trained="teacher", teacher__name="test_vit", model__init="x.pth"
        ),
    ):
        assert other.optim.lr == pytest.approx(anew.optim.lr / 5, rel=0.05)


def test_batch_norms_bear_longer_steps(make_images: Pictures) -> None:
    data = str(make_images(COUNTS))
    rates = {
        name: configured(data__path=data, model__name=name).optim.lr
        for name in ("tiny", "test_vit", "test_byobnet", "cifar_resnet8")
    }
    assert (
        rates["test_byobnet"]
        == rates["cifar_resnet8"]
        == pytest.approx(4 * rates["tiny"], rel=0.05)
    )
    assert rates["tiny"] == rates["test_vit"]
    teacher = configured(data__path=data, trained="teacher", teacher__name="test_byobnet")
    assert teacher.optim.lr == rates["test_byobnet"]


def test_a_run_goes_on_as_it_began_whatever_the_machine(
    make_images: Pictures, tmp_path: Path, deit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_images(COUNTS)
    flags = ["--train-student", "--model=test_byobnet", "--distillation=none", "--image-size=32",
             f"--data-path={data}", f"--output={tmp_path}", "--name=own", "--workers=0"]  # fmt: skip
    done = deit(*flags, "--epochs=1")
    assert done.code == 0, done.err
    assert "preset small" in done.err + done.out and "--preset imagenet" in done.err + done.out
    own = {"data__path": str(data), "output": str(tmp_path), "model__name": "test_byobnet"}
    first = configured(**own, name="own", distill__loss__name="none", train__epochs=1)
    monkeypatch.setattr(presets, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("srd.config.presets.LEAST_IMAGES", 8)
    again = configured(**own, name="own", distill__loss__name="none", train__epochs=1)
    assert again == first
    assert configured(**own, name="other").train.epochs > 100
    assert configured(**own, name="own", resume="none").train.epochs > 100
    last = str(tmp_path / "own" / "checkpoints" / "last.pth")
    assert configured(**own, name="other", resume=last).train.epochs == 1


def test_a_warm_up_that_was_shortened_is_told() -> None:
    digits = Layer("file", {"data": {"dataset": "digits"}, "optim": {"warmup_epochs": 9}})
    for shared, epochs, told in (
        ([], 10, "a warm-up of 20 epochs is too long for 10: its share of the planned ones, 0.67"),
        (
            [Layer("", {"train": {"epochs": 30}}), digits],
            9,
            "for 9: its share of the planned ones, 2.7",
        ),
    ):
        given = [Layer("", {"data": {"dataset": "digits"}, "train": {"epochs": epochs}})]
        (note,) = configure_training(shared, given, "student").notes
        assert told in note
    assert configure_training([digits], [], "student").notes == []
