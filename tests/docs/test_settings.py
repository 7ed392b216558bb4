"""docs/settings.md shows every field with its flag and its default."""

from __future__ import annotations

import re
from typing import Any

import yaml

from srd.config.fields import Config
from srd.config.flags import FLAGS, SWITCHES
from srd.config.layers import dotted_keys, flatten, to_mapping
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "settings.md").read_text()
ROWS = re.findall(r"^\| `([\w.]+)` \| (?:`(--[\w-]+)`)? ?\| `(.+?)` \|", PAGE, re.M)


def test_every_field_with_its_default() -> None:
    defaults: dict[str, Any] = flatten(to_mapping(Config()))
    shown = {field: yaml.safe_load(value) for field, _, value in ROWS}
    numbers = {k: float(v) if isinstance(defaults.get(k), float) else v for k, v in shown.items()}
    fields = [field for field, _, _ in ROWS if not field.startswith("distill.loss.")]
    known = [key for key in dotted_keys(Config) if not key.startswith("distill.loss")]
    assert sorted(fields) == sorted(known)
    assert {k: v for k, v in numbers.items() if k in defaults} == defaults


def test_every_flag() -> None:
    flags = {field: f"--{name}" for name, (field, _) in (FLAGS | SWITCHES).items()}
    assert {field: flag for field, flag, _ in ROWS if flag} == flags
