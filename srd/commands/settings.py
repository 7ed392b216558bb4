"""The flags that set a configuration's fields, for every command that has one."""

from __future__ import annotations

import argparse

from srd.config.flags import FLAGS, SWITCHES
from srd.config.layers import Layer


def add_settings(parser: argparse.ArgumentParser) -> None:
    """`--config`, those of `FLAGS` with `-` or `_`, `SWITCHES`, `--set`."""
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    for name, (field, text) in FLAGS.items():
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
        parser.add_argument(*spellings, dest=field, metavar=name.upper(), help=text)
    for name, (_, text) in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any field")


def given(flags: argparse.Namespace) -> list[Layer]:
    """What was set by hand: flags, then --set; a UserError for a --set that is none."""
    from srd.config.layers import nested, setting

    layers = [
        Layer(f"--{name}", nested(field, value))
        for name, (field, _) in FLAGS.items()
        if (value := getattr(flags, field)) is not None
    ]
    layers += [
        Layer(f"--{name}", nested(field, True))
        for name, (field, _) in SWITCHES.items()
        if getattr(flags, name)
    ]
    return layers + [Layer(f"--set {text}", setting(text)) for text in flags.set]


def shared(flags: argparse.Namespace) -> list[Layer]:
    """What the YAML file says; a UserError where it cannot be read."""
    from srd.config.layers import read_yaml
    from srd.files.locate import recipe_file

    return [Layer(flags.config, read_yaml(recipe_file(flags.config)))] if flags.config else []
