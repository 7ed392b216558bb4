"""Defaults are the paper's; every file in configs/ is valid and says what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.main import make_parser, read_config
from srd.config.fields import Config, check
from srd.config.layers import Layer, build, dump_yaml, flatten, read_yaml, to_mapping
from srd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAPER = {
    "train.epochs": 300,
    "optim.lr": 5e-4,
    "optim.lr_batch": 512,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.05,
    "optim.min_lr": 5e-6,
    "optim.warmup_epochs": 20,
    "optim.warmup_lr": 5e-7,
    "optim.clip_norm": 15,
    "augment.label_smoothing": 0.1,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.mix_probability": 1.0,
    "augment.mix_switch": 0.5,
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.erase": 0.25,
    "augment.erase_mode": "pixel",
    "augment.erase_count": 1,
    "augment.interpolation": "bicubic",
    "model.image_size": 224,
    "model.drop_path": 0,
    "data.eval_interpolation": "bilinear",
    "data.eval_crop": 0.875,
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "distill.match": "correlation",
    "distill.alpha": 4,
    "distill.temperature": 1,
    "distill.ce_weight": 1,
    "distill.kl_weight": 1,
    "distill.repr_weight": 1,
}


def test_defaults_are_the_papers() -> None:
    defaults = flatten(to_mapping(Config()))
    assert {key: defaults[key] for key in PAPER} == PAPER
    assert 256 <= defaults["train.batch_size"] <= 1024


@pytest.mark.parametrize("name", ["deit_tiny", "deit_small", "digits/deit", "digits/teacher"])
def test_files_in_configs_are_valid(name: str) -> None:
    path = ROOT / f"configs/{name}.yaml"
    config = build(Config, [Layer(str(path), read_yaml(path))])
    check(config)
    if name.startswith("deit_"):
        recipe = flatten(to_mapping(config))
        assert {key: recipe[key] for key in PAPER} == PAPER


def test_every_file_in_configs_is_checked_here_or_with_the_resnets() -> None:
    files = (ROOT / "configs").rglob("*.yaml")
    names = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in files}
    ours = {name for name in names if not name.rsplit("/")[-1].startswith("res")}
    assert ours == {"deit_tiny", "deit_small", "digits/deit", "digits/teacher"}


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = Config(seed=3)
    (tmp_path / "c.yaml").write_text(dump_yaml(to_mapping(config)))
    assert build(Config, [Layer("c", read_yaml(tmp_path / "c.yaml"))]) == config


def test_flags_win_over_yaml_and_set_over_flags(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {epochs: 5, batch_size: 8}\nseed: 4")
    flags = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--batch_size=10",
        "--epochs",
        "6",
        "--set",
        "train.epochs=7",
    ]
    config = read_config(make_parser().parse_args(flags))
    assert (config.seed, config.train.batch_size, config.train.epochs) == (4, 10, 7)


FLAGS = {
    "--model": ("model.name", "small"),
    "--data-path": ("data.path", "/images"),
    "--dataset": ("data.dataset", "digits"),
    "--output": ("output", "/out"),
    "--name": ("name", "mine"),
    "--batch-size": ("train.batch_size", 64),
    "--epochs": ("train.epochs", 3),
    "--seed": ("seed", 5),
    "--device": ("device", "cpu"),
    "--workers": ("data.workers", 1),
    "--teacher": ("teacher.name", "resnet18"),
    "--teacher-checkpoint": ("teacher.checkpoint", "t.pth"),
    "--distillation": ("distill.method", "kd"),
    "--resume": ("resume", "none"),
    "--amp": ("amp", "off"),
}


@pytest.mark.parametrize("underscore", [False, True])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_sets_its_field_alone_with_either_spelling(flag: str, underscore: bool) -> None:
    key, value = FLAGS[flag]
    spelled = "--" + flag[2:].replace("-", "_") if underscore else flag
    config = read_config(make_parser().parse_args([spelled, str(value)]))
    defaults = flatten(to_mapping(read_config(make_parser().parse_args([]))))
    changed = {k: v for k, v in flatten(to_mapping(config)).items() if v != defaults[k]}
    if flag in ("--model", "--dataset", "--distillation"):  # the run's name tells them
        assert changed.pop("name") != defaults["name"]
    assert changed == {key: value}


@pytest.mark.parametrize(
    "section",
    ["train: {batch_size: 7}", "train: {batch_size: 1}", "augment: {crop_scale: [1, 0.5]}"],
)
def test_values_that_do_not_go_together_are_errors(section: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(section)
    with pytest.raises(UserError):
        check(build(Config, [Layer("c", read_yaml(tmp_path / "c.yaml"))]))
