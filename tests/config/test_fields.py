"""Defaults are the paper's; every file in configs/ is valid and says what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deit.main import configure, make_parser
from srd.config.checks import check
from srd.config.fields import Config, default_name
from srd.config.layers import Layer, dump_yaml, flatten, read_yaml, to_mapping
from srd.config.reading import MOVED, read_config
from srd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAPER = {
    "train.epochs": 300,
    "optim.lr": 5e-4,
    "optim.lr_batch": 512,
    "optim.name": "adamw",
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.schedule": "cosine",
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
    "distill.loss.name": "srd",
    "distill.loss.match": "correlation",
    "distill.loss.alpha": 4,
    "distill.temperature": 1,
    "distill.ce_weight": 1,
    "distill.kl_weight": 1,
    "distill.repr_weight": 1,
}


def test_defaults_are_the_papers() -> None:
    defaults = flatten(to_mapping(read_config([])))
    assert {key: defaults[key] for key in PAPER} == PAPER
    assert 256 <= defaults["train.batch_size"] <= 1024


OURS = {
    "own",
    "deit_tiny",
    "deit_small",
    "resnet18",
    "digits/deit",
    "digits/teacher",
    "digits/vit",
    "digits/study",
    "cifar10/small_teacher",
    "cifar10/study",
    "cifar10/teacher",
}
OURS |= {f"cifar100/{path.stem}" for path in (ROOT / "configs" / "cifar100").glob("*.yaml")}
TORCHDISTILLS = {"res3418", "digits/resnet", "digits/resnet_alone", "digits/resnet_teacher"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_files_in_configs_are_valid(name: str) -> None:
    path = ROOT / f"configs/{name}.yaml"
    config = read_config([Layer(str(path), read_yaml(path))])
    check(config)
    if name.startswith("deit_"):
        recipe = flatten(to_mapping(config))
        assert {key: recipe[key] for key in PAPER} == PAPER


def test_the_resnets_recipe_is_the_papers() -> None:
    path = ROOT / "configs/resnet18.yaml"
    config = flatten(to_mapping(read_config([Layer("", read_yaml(path))])))
    recipe = {
        "model.name": "resnet18",
        "teacher.name": "resnet34.tv_in1k",
        "train.epochs": 100,
        "train.batch_size": 256,
        "optim.name": "momentum",
        "optim.lr": 0.1,
        "optim.lr_batch": 256,
        "optim.weight_decay": 1e-4,
        "optim.decay_all": True,
        "optim.clip_norm": None,
        "optim.schedule": "step",
        "optim.decay_epochs": [30, 60, 90],
        "optim.decay_rate": 0.1,
        "optim.warmup_epochs": 0,
        "distill.loss.name": "srd",
        "distill.loss.match": "elementwise",
        "distill.loss.alpha": 4,
        "distill.ce_weight": 1,
        "distill.kl_weight": 1,
        "distill.repr_weight": 2,
        "distill.temperature": 1,
        "augment.label_smoothing": 0,
        "augment.rand_augment": "",
        "data.eval_crop": 0.875,
    }
    assert {key: config[key] for key in recipe} == recipe
    assert not any(
        config[f"augment.{name}"] for name in ("mixup", "cutmix", "erase", "color_jitter")
    )


def test_every_file_in_configs_is_checked_here_or_with_the_resnets() -> None:
    files = (ROOT / "configs").rglob("*.yaml")
    names = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in files}
    assert names == OURS | TORCHDISTILLS


def test_other_optimizers_keep_their_own_numbers() -> None:
    optim = read_config([Layer("", {"optim": {"name": "lamb"}})]).optim
    assert (optim.betas, optim.eps, optim.momentum) == (None, None, None)
    given = read_config([Layer("", {"optim": {"betas": [0.5, 0.75], "eps": 1e-6}})]).optim
    assert (given.betas, given.eps) == ((0.5, 0.75), 1e-6)


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = read_config([Layer("", {"seed": 3})])
    (tmp_path / "c.yaml").write_text(dump_yaml(to_mapping(config)))
    assert read_config([Layer("c", read_yaml(tmp_path / "c.yaml"))]) == config


def test_flags_win_over_yaml_and_set_over_flags(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {epochs: 5, batch_size: 8}\nseed: 4")
    flags = [
        "--train-student",
        "--config",
        str(tmp_path / "c.yaml"),
        "--batch_size=10",
        "--epochs",
        "6",
        "--set",
        "train.epochs=7",
    ]
    config = configure(make_parser().parse_args(flags))
    assert (config.seed, config.train.batch_size, config.train.epochs) == (4, 10, 7)


FLAGS = {
    "--model": ("model.name", "small"),
    "--image-size": ("model.image_size", 64),
    "--data-path": ("data.path", "/images"),
    "--dataset": ("data.dataset", "digits"),
    "--output": ("output", "/out"),
    "--name": ("name", "mine"),
    "--batch-size": ("train.batch_size", 64),
    "--epochs": ("train.epochs", 100),
    "--lr": ("optim.lr", 0.25),
    "--warmup-epochs": ("optim.warmup_epochs", 2.5),
    "--seed": ("seed", 5),
    "--device": ("device", "cpu"),
    "--workers": ("data.workers", 1),
    "--teacher": ("teacher.name", "resnet18"),
    "--teacher-checkpoint": ("teacher.checkpoint", "t.pth"),
    "--distillation": ("distill.loss.name", "kd"),
    "--resume": ("resume", "none"),
    "--amp": ("amp", "off"),
}


@pytest.mark.parametrize("underscore", [False, True])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_sets_its_field_alone_with_either_spelling(flag: str, underscore: bool) -> None:
    key, value = FLAGS[flag]
    spelled = "--" + flag[2:].replace("-", "_") if underscore else flag
    mode = "--train-student"
    config = configure(make_parser().parse_args([mode, spelled, str(value)]))
    defaults = flatten(to_mapping(configure(make_parser().parse_args([mode]))))
    found = flatten(to_mapping(config))
    changed = {k: v for k, v in found.items() if v != defaults[k]}
    if flag in ("--model", "--dataset", "--distillation"):  # the run's name tells them
        assert changed.pop("name") != defaults["name"]
    assert changed == {key: value}
    # Another loss has other settings; all else is there, and as it was.
    own = ("distill.loss.",) if flag == "--distillation" else ()
    assert {k for k in defaults if not k.startswith(own)} == {
        k for k in found if not k.startswith(own)
    }


def read(*texts: str) -> Config:
    """The configuration that YAML texts make, the later winning."""
    layers = [Layer(f"file {n}", yaml.safe_load(text)) for n, text in enumerate(texts)]
    config = read_config(layers)
    check(config)
    return config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {batch_size: 7}", "train.batch_size 7 is odd"),
        ("train: {batch_size: 1}", "train.batch_size 1"),
        ("augment: {mixup: 0, cutmix: 0}\ntrain: {batch_size: 1}", "train.batch_size 1"),
        ("augment: {crop_scale: [1, 0.5]}", "augment.crop_scale"),
        ("augment: {crop_ratio: [2, 0.5]}", "augment.crop_ratio"),
        ("optim: {schedule: step}", "needs optim.decay_epochs and optim.decay_rate"),
        ("optim: {schedule: step, decay_rate: 0.1}", "needs optim.decay_epochs"),
        ("optim: {decay_rate: 0.1}", "optim.decay_rate have no effect on a cosine"),
        ("optim: {decay_epochs: [3]}", "optim.decay_epochs and"),
        (
            "optim: {schedule: step, decay_epochs: [3], decay_rate: 0.1, min_lr: 1e-4}",
            "optim.min_lr has no effect",
        ),
        (
            "optim: {schedule: step, decay_epochs: [60, 30], decay_rate: 0.1}",
            "optim.decay_epochs",
        ),
        ("distill: {loss: {name: none}, kl_weight: 2}", "distill.kl_weight has no effect"),
        ("distill: {loss: {name: none}, temperature: 2}", "distill.temperature has no effect"),
        ("distill: {loss: {name: none}, repr_weight: 2}", "distill.repr_weight has no effect"),
        ("distill: {loss: {name: kd}, repr_weight: 0}", "distill.repr_weight has no effect"),
    ],
)
def test_values_that_do_not_go_together_or_have_no_effect_are_errors(text: str, named: str) -> None:
    text = text.replace("1e-4", "0.0001")
    with pytest.raises(UserError) as caught:
        read(text)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "distill: {loss: {name: kd}, kl_weight: 0.5, temperature: 4}",
        "distill: {loss: {name: none}, ce_weight: 0.5}",
        "distill: {kl_weight: 0, repr_weight: 0}",
        "optim: {schedule: step, decay_epochs: [30, 60], decay_rate: 0.1, warmup_epochs: 0}",
    ],
)
def test_values_that_have_an_effect_are_taken(text: str) -> None:
    found, given = flatten(to_mapping(read(text))), flatten(yaml.safe_load(text))
    assert {key: found[key] for key in given} == given


EARLIER = {
    "method": "srd",
    "match": "elementwise",
    "alpha": 3.0,
    "bn_eps": 1e-3,
    "log_eps": 1e-6,
}


def test_settings_of_the_loss_are_read_where_earlier_versions_had_them() -> None:
    assert {f"distill.{name}" for name in EARLIER} == set(MOVED)
    config = read_config([Layer("", {"distill": {**EARLIER, "temperature": 2.0}})])
    today = {"name": "srd", **{name: EARLIER[name] for name in EARLIER if name != "method"}}
    assert to_mapping(config.distill.loss) == today and config.distill.temperature == 2


@pytest.mark.parametrize("method", ["srd", "kd", "none"])
def test_a_configuration_that_an_earlier_version_wrote_reads_as_before(method: str) -> None:
    """All fields stood there, those without an effect too."""
    distill = {"method": method, "match": "correlation", "alpha": 4.0, "bn_eps": None}
    weights = {"temperature": 1.0, "ce_weight": 1.0, "kl_weight": 1.0, "repr_weight": 1.0}
    optim = {"betas": [0.9, 0.999], "eps": 1e-8}
    earlier = {"distill": {**distill, "log_eps": None, **weights}, "optim": optim}
    config = read_config([Layer("config.yaml", earlier)])
    check(config)
    assert config.distill == read_config([Layer("", {"distill": {"method": method}})]).distill
    assert config.distill.loss.name == method


def test_losses_of_earlier_and_of_todays_layers_win_in_their_order() -> None:
    old, new = "distill: {method: kd}", "distill: {loss: {name: none}}"
    assert read(old, new).distill.loss.name == "none" and read(new, old).distill.loss.name == "kd"


def test_a_loss_may_be_named_alone() -> None:
    assert read("distill: {loss: kd}") == read("distill: {loss: {name: kd}}")


SRD = "distill: {loss: {name: srd, match: elementwise, alpha: 3}, kl_weight: 0.5}"


@pytest.mark.parametrize(
    "texts",
    [
        [SRD],
        ["distill: {loss: {match: elementwise, alpha: 3}, kl_weight: 0.5}"],  # srd's, by default
        ["distill: {match: elementwise, alpha: 3, kl_weight: 0.5}"],
        ["distill: {loss: {match: elementwise}}", SRD],
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["kd", "vkd"])
def test_another_loss_leaves_the_settings_of_the_one_before(texts: list[str], name: str) -> None:
    config = read(*texts, f"distill: {{loss: {{name: {name}}}}}")
    assert config.distill.loss == read(f"distill: {{loss: {name}}}").distill.loss
    assert config.distill.kl_weight == 0.5


def test_the_same_loss_keeps_its_settings() -> None:
    assert read(SRD, "distill: {loss: {name: srd}}") == read(SRD)
    merged = read(SRD, "distill: {loss: {name: srd, alpha: 2}}", "distill: {loss: {log_eps: 0.5}}")
    assert to_mapping(merged.distill.loss) == {
        "name": "srd", "match": "elementwise", "alpha": 2, "bn_eps": None, "log_eps": 0.5,
    }  # fmt: skip


def test_a_loss_that_comes_back_begins_with_its_defaults() -> None:
    config = read(SRD, "distill: {loss: {name: kd}}", "distill: {loss: {name: srd}}")
    assert config.distill.loss == Config().distill.loss and config.distill.kl_weight == 0.5


def test_a_flag_names_another_loss_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SRD)
    flags = [f"--config={tmp_path / 'c.yaml'}", "--distillation=kd", "--train_student"]
    config = configure(make_parser().parse_args(flags))
    assert config.distill.loss.name == "kd" and config.name == "deit_tiny_kd"
    flags += ["--set=distill.loss.name=srd", "--set=distill.loss.alpha=5"]
    config = configure(make_parser().parse_args(flags))
    assert (config.distill.loss.name, config.distill.loss.alpha) == ("srd", 5)
    assert config.distill.loss.match == "correlation"  # of the file's srd, kd has left nothing


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("distill: {loss: {name: srdd}}", "did you mean 'srd'"),
        ("distill: {loss: vdk}", "did you mean 'vkd'"),
        ("distill: {method: kdd}", "did you mean 'kd'"),
        ("distill: {loss: {mach: elementwise}}", "unknown key 'distill.loss.mach' in file 0"),
        ("distill: {loss: {mach: elementwise}}", "did you mean 'distill.loss.match'"),
        ("distill: {loss: {name: kd, match: elementwise}}", "'distill.loss.match' in file 0"),
        ("distill: {loss: {alpha: 0.5}}", "distill.loss.alpha in file 0 should be greater than"),
        ("distill: {loss: {alpha: x}}", "distill.loss.alpha in file 0 should be a valid number"),
        ("distill: {loss: {alpha: true}}", "distill.loss.alpha in file 0 should be a number"),
        ("distill: {match: elementwice}", "distill.loss.match in file 0 should be"),
        ("distill: {loss: 3}", "distill.loss in file 0"),
        ("distill: {loss: null}", "distill.loss in file 0"),
        ("distill: {loss: {name: [srd]}}", "distill.loss"),
        ("distill: {loss: {name: null}}", "distill.loss"),
        ("distill: 3", "distill in file 0"),
        ("distil: {loss: kd}", "did you mean 'distill'"),
        ("optim: {nme: sgd}", "did you mean 'optim.name'"),
    ],
)
def test_mistakes_in_a_loss_name_their_key_and_place(text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    said = str(caught.value)
    assert named in said and "\n" not in said and "pydantic" not in said


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "deit_tiny_srd"),
        (["--model=small", "--distillation=none"], "deit_small_none"),
        (["--model=mobilenetv3_small_050", "--dataset=digits"], "digits_mobilenetv3_small_050_srd"),
        (["--name=mine"], "mine"),
    ],
)
def test_a_run_is_named_after_what_it_trains(flags: list[str], name: str) -> None:
    config = configure(make_parser().parse_args(["--train_student", *flags]))
    assert config.name == name
    assert default_name(config, "teacher").endswith("teacher_regnety_160.deit_in1k")
