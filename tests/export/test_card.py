"""The model card, config.json and the terminal show what others wrote, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import timm

from srd.export.card import model_card
from srd.export.classifier import Classifier
from srd.export.description import Description
from srd.export.for_timm import write_config
from srd.export.predict import Guess, Prediction
from tests.test_printable import FOUL

NETWORK = "test_byobnet"


def foul() -> Classifier:
    """A classifier whose every text is an attack."""
    described = Description(
        NETWORK,
        2,
        label_names=(FOUL, "b\x1b[2J"),
        about={"Teacher": FOUL, FOUL: "[a](javascript:alert(1)) `b` **c**"},
        settings={"teacher": {"name": FOUL + "\n```\n# INJECTED\n"}, FOUL: 1},
    )
    return Classifier(timm.create_model(NETWORK, num_classes=2).eval(), described, FOUL)


def test_a_card_has_no_headings_links_or_mark_up_of_others() -> None:
    card = model_card(foul(), licence="unknown", usage=[], checks=[])
    assert all(line.isprintable() for line in card.split("\n"))
    fence = card.index("## Configuration")
    headings = [line for line in card[:fence].split("\n") if line.startswith("#")]
    assert len(headings) == 1 and headings[0].startswith("# x\\\\n\\\\n\\# INJECTED")
    assert "<img" not in card[:fence] and "](" not in card[:fence].replace("\\](", "")
    _, opening, rest = card[fence:].split("\n\n", 1)[0], *card[fence:].split("\n", 3)[2:]
    assert opening == "````yaml" and rest.index("\n````\n") > rest.index("# INJECTED")
    assert card.endswith("```\n") and card.count("\n## ") == 2


def test_a_configuration_says_the_same_without_hidden_characters(tmp_path: Path) -> None:
    write_config(foul(), tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == foul().description.to_config()


def test_predictions_are_one_line_a_class() -> None:
    shown = str(Prediction(FOUL, (Guess(0, FOUL, 0.5),)))
    assert len(shown.split("\n")) == 2 and all(line.isprintable() for line in shown.split("\n"))
