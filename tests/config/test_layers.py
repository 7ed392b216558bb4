"""Configuration in layers: the later wins, and every mistake says what, where, and what fits."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from pydantic.dataclasses import dataclass

from srd.config.layers import (
    Layer,
    build,
    differences,
    dotted_keys,
    dump_yaml,
    flatten,
    merge,
    nested,
    read_yaml,
    setting,
    to_mapping,
)
from srd.errors import UserError
from srd.strict import STRICT


@dataclass(config=STRICT)
class Optim:
    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: Annotated[float, Field(gt=0)] | None = 15.0


@dataclass(config=STRICT)
class Train:
    batch_size: Annotated[int, Field(ge=1)] = 256
    epochs: Annotated[int, Field(ge=1)] = 300


@dataclass(config=STRICT)
class Config:
    name: str | None = None
    amp: Literal["auto", "off"] = "auto"
    compile: bool = False
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)


def mistake(*layers: Layer) -> str:
    with pytest.raises(UserError) as caught:
        build(Config, layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_without_layers() -> None:
    assert build(Config, []) == Config()


def test_later_layers_win_key_by_key() -> None:
    config = build(
        Config,
        [
            Layer("a.yaml", {"train": {"epochs": 10, "batch_size": 8}, "optim": {"lr": 0.1}}),
            Layer("--epochs", {"train": {"epochs": 20}}),
            Layer("--set", {"optim": {"betas": [0.8, 0.9]}}),
        ],
    )
    assert config.train == Train(batch_size=8, epochs=20)
    assert config.optim == Optim(lr=0.1, betas=(0.8, 0.9))
    assert config.name is None


def test_layers_are_not_changed() -> None:
    low, high = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(low, high) == {"a": {"b": 3, "c": 2}}
    assert (low, high) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_flags_come_as_text() -> None:
    size, rate = {"train": {"batch_size": "64"}}, {"optim": {"lr": "1e-3"}}
    config = build(Config, [Layer("--batch-size", size), Layer("--lr", rate)])
    assert (config.train.batch_size, config.optim.lr) == (64, 1e-3)


def test_none_where_it_is_allowed() -> None:
    assert build(Config, [Layer("", {"optim": {"clip_norm": None}})]).optim.clip_norm is None
    assert "train.epochs" in mistake(Layer("", {"train": {"epochs": None}}))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"train": {"epoch": 3}}, "unknown key 'train.epoch' in a.yaml (did you mean 'train.epochs'?)"),
        ({"trian": {"epochs": 3}}, "unknown key 'trian' in a.yaml (did you mean 'train'?)"),
        ({"epochs": 3}, "unknown key 'epochs' in a.yaml (did you mean 'train.epochs'?)"),
        ({"comple": True}, "unknown key 'comple' in a.yaml (did you mean 'compile'?)"),
        ({"zzzzzz": 1}, "unknown key 'zzzzzz' in a.yaml"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_its_source_and_the_nearest(values: dict[str, Any], said: str) -> None:
    assert mistake(Layer("a.yaml", values)) == said


@pytest.mark.parametrize(
    "values, said",
    [
        ({"train": {"epochs": "many"}}, ["train.epochs", "integer", "'many'"]),
        ({"train": {"epochs": 2.5}}, ["train.epochs", "integer", "2.5"]),
        ({"train": {"epochs": 0}}, ["train.epochs", "greater than or equal to 1", "not 0"]),
        ({"train": {"epochs": True}}, ["train.epochs", "True"]),
        ({"optim": {"lr": True}}, ["optim.lr", "True"]),
        ({"optim": {"lr": -0.1}}, ["optim.lr", "greater than 0", "-0.1"]),
        ({"optim": {"lr": float("nan")}}, ["optim.lr", "finite", "nan"]),
        ({"optim": {"clip_norm": float("inf")}}, ["optim.clip_norm", "finite"]),
        ({"optim": {"betas": [0.9]}}, ["optim.betas"]),
        ({"optim": {"betas": [0.9, 0.9, 0.9]}}, ["optim.betas"]),
        ({"amp": "of"}, ["amp", "'auto' or 'off'", "'of'"]),
        ({"compile": "perhaps"}, ["compile", "boolean", "'perhaps'"]),
        ({"name": 3}, ["name", "string", "3"]),
        ({"train": 3}, ["train", "3"]),
        ({"train": None}, ["train", "None"]),
        ({3: 4}, ["3"]),
    ],
    ids=str,
)
def test_a_wrong_value_names_key_source_and_what_fits(
    values: dict[Any, Any], said: list[str]
) -> None:
    found = mistake(Layer("a.yaml", values))
    assert all(part in found for part in ["in a.yaml", *said])


def test_the_source_of_a_mistake_is_the_layer_that_made_it() -> None:
    yaml, flag = (
        Layer("a.yaml", {"train": {"epochs": 5}}),
        Layer("--epochs", {"train": {"epochs": -1}}),
    )
    assert "train.epochs in --epochs" in mistake(yaml, flag)
    later = Layer("--batch-size", {"train": {"batch_size": 4}})
    assert "train.epochs in --epochs" in mistake(yaml, flag, later)


def test_several_mistakes_are_told_at_once() -> None:
    said = mistake(Layer("a.yaml", {"train": {"epochs": 0}, "nmae": "x"}))
    assert "train.epochs" in said and "'nmae'" in said and "; " in said


@pytest.mark.parametrize(
    "text, values",
    [
        ("train.epochs=3", {"train": {"epochs": 3}}),
        ("compile=true", {"compile": True}),
        ("optim.betas=[0.8, 0.9]", {"optim": {"betas": [0.8, 0.9]}}),
        ("optim.clip_norm=null", {"optim": {"clip_norm": None}}),
        ("name=", {"name": None}),
        ("name='a=b'", {"name": "a=b"}),
        ("optim.lr=5e-4", {"optim": {"lr": "5e-4"}}),  # YAML 1.1; a number once it is built
    ],
)
def test_set(text: str, values: dict[str, Any]) -> None:
    assert setting(text) == values
    build(Config, [Layer(f"--set {text}", setting(text))])


@pytest.mark.parametrize(
    "text", ["train.epochs", "=3", " =3", "name=[1", "name={a", "name=2024-02-31"]
)
def test_set_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        setting(text)


def test_nested() -> None:
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    assert nested("a", 1) == {"a": 1}


def yaml_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_is_read(tmp_path: Path) -> None:
    assert read_yaml(yaml_file(tmp_path, "train:\n  epochs: 3\n")) == {"train": {"epochs": 3}}
    assert read_yaml(yaml_file(tmp_path, "# nothing yet\n")) == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("train:\n  epochs: 3\n bad: [1\n", "line 3"),
        ("a: 1\nb: {c\n", "line 3"),
        ("a: !!python/object:os.system x\n", "line 1"),
        ("- 1\n- 2\n", "list"),
        ("just text\n", "str"),
        (b"a: \xff\xfe\n", "not a text file"),
        ("name: 2024-02-31\n", "YAML"),
    ],
)
def test_yaml_that_cannot_be_read_names_file_and_line(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    path = yaml_file(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_a_missing_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml.*No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_a_resolved_configuration_is_read_back_the_same(tmp_path: Path) -> None:
    config = build(
        Config, [Layer("", {"name": "größe: 1e-3", "optim": {"lr": 1e-7, "betas": [0, 1]}})]
    )
    path = yaml_file(tmp_path, dump_yaml(to_mapping(config)))
    assert build(Config, [Layer(str(path), read_yaml(path))]) == config


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))  # of one line
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@given(values=st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=3), max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_values_are_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = yaml_file(tmp_path_factory.getbasetemp(), dump_yaml(values))
    assert read_yaml(path) == values


def test_a_configuration_as_plain_values() -> None:
    assert to_mapping(Config()) == {
        "name": None,
        "amp": "auto",
        "compile": False,
        "optim": {"lr": 5e-4, "betas": [0.9, 0.999], "clip_norm": 15.0},
        "train": {"batch_size": 256, "epochs": 300},
    }


def test_dotted_keys_are_the_leaves() -> None:
    assert list(dotted_keys(Config)) == list(flatten(to_mapping(Config())))
    assert dataclasses.is_dataclass(Config)


def test_differences_name_the_fields() -> None:
    old = {"seed": 0, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "train": {"epochs": 3}}
    new = {
        "seed": 0,
        "optim": {"lr": 0.2, "betas": [0.9, 0.99]},
        "train": {"epochs": 4},
        "amp": "off",
    }
    expected = ["optim.lr: 0.1 -> 0.2", "train.epochs: 3 -> 4", "amp: None -> off"]
    assert differences(old, new, ()) == expected
    assert differences(old, new, ("train.", "amp")) == expected[:1]
    assert differences(new, old, ())[2] == "amp: off -> None"
    assert differences(old, old, ()) == []
