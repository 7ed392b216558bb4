"""What is given by hand has an effect on what is done, or is refused."""

from __future__ import annotations

import pytest

from srd.config.effects import IDLE, READ, Doing, configure
from srd.config.fields import Config
from srd.config.layers import Layer, dotted_keys, nested
from srd.errors import UserError

KEYS = list(dotted_keys(Config, {"distill": {"loss": {"name": "srd"}}}))


@pytest.mark.parametrize("doing", IDLE)
def test_what_is_listed_are_settings(doing: Doing) -> None:
    for prefix in (*IDLE[doing], *READ):
        assert any(key.startswith(prefix) for key in KEYS), prefix


@pytest.mark.parametrize(
    ("doing", "key", "value"),
    [
        ("teacher", "distill.loss.name", "vkd"),
        ("teacher", "model.name", "tiny"),
        ("teacher", "teacher.checkpoint", "teacher.pth"),
        ("evaluation", "optim.lr", 0.1),
        ("evaluation", "train.epochs", 2),
        ("evaluation", "resume", "none"),
    ],
)
def test_without_effect_it_is_refused_by_hand_and_may_stand_in_a_file(
    doing: Doing, key: str, value: object
) -> None:
    layer = Layer("--flag", nested(key, value))
    with pytest.raises(UserError, match=f"--flag: {key} has no effect where"):
        configure([], [layer], doing)
    configure([layer], [], doing)
    configure([], [layer], "student")


def test_what_everything_reads() -> None:
    for doing in IDLE:
        given = [Layer("--batch-size", {"train": {"batch_size": 8}})]
        assert configure([], given, doing).train.batch_size == 8


def test_a_run_has_the_name_of_what_is_trained() -> None:
    assert configure([], [], "student").name == "deit_tiny_srd"
    assert configure([], [], "teacher").name == "teacher_regnety_160.deit_in1k"
    assert configure([], [Layer("", {"name": "mine"})], "student").name == "mine"
    assert configure([], [], "evaluation").name is None
