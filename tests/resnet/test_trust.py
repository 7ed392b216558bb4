"""What a configuration may name, and that a refused one runs nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from resnet.recipe import read_recipe
from srd.errors import UserError

REST = "\ndatasets: {}\nmodels: {}\ntrain: {}\ntest: {}\n"
ALLOWED = [
    "!import_get {key: torch.utils.data.RandomSampler}",
    "!import_call {key: Resize, package: torchvision.transforms, init: {args: [8]}}",
    "!join [a, b]",
    "!getattr [!import_get {key: torchvision.models.ResNet18_Weights}, IMAGENET1K_V1]",
    "!import_get {key: torchvision.models.alexnet}",  # a module of this name is there too
    "!import_get {key: torch.float32}",
    "!import_get {key: torch.nn.functional.gelu}",
    "!import_get {key: srd.method.logits.distillation_kl}",
    "!import_call_method {package: torch.nn.Linear.extra_repr, init: {args: [!import_call "
    "{key: torch.nn.Linear, init: {args: [1, 1]}}]}}",
    "!access_by_index_or_key {data: !getattr [!import_get {key: torchvision.datasets.CIFAR10}, "
    "meta], index_or_key: key}",
]
HOSTILE = [
    "!import_call {key: os.system, init: {args: ['touch PATH']}}",
    "!import_call {key: system, package: os, init: {args: ['touch PATH']}}",
    "!import_get {key: os, package: torch}",
    "!import_get {key: torchvision.datasets.folder.os.system}",
    "!import_get {key: torchvision.datasets.folder.os}",
    "!import_call {key: torch.hub.load, init: {args: [x, y]}}",
    "!import_call {key: torch.load, init: {args: [PATH]}}",
    "!import_call {key: torchvision.datasets.utils.download_url, init: {args: [x]}}",
    "!import_call {key: srd.export.hub.push, init: {args: [PATH, a/b]}}",
    "!import_call {key: srd.export.folder.appearing, init: {args: [PATH]}}",
    "!import_call {key: srd.export.graphs.OnnxNetwork, init: {args: [PATH]}}",
    "!import_get {key: srd.export.classifier.open_classifier}",
    "!import_get {key: srd.export.origin.read_source}",
    "!import_get {key: srd.export.predict.find_pictures}",
    "!import_get {key: resnet.export.describe}",
    "!import_call {key: builtins.eval, init: {args: ['1']}}",
    "!import_call {key: subprocess.run, init: {args: [['touch', PATH]]}}",
    "!import_call {key: !join [os, .system], init: {args: ['touch PATH']}}",
    "!import_call_method {package: os.path.join}",
    "!import_call {key: torch.nn.modules.module.torch.os.system, init: {args: ['touch PATH']}}",
    "!getattr [!import_get {key: torch.nn.Module}, __subclasses__]",
    "!getattr [x, !join [__, class__]]",
    "!call_method {obj: x, method_name: __class__}",
    "!!python/object/apply:os.system ['touch PATH']",
    "!!python/name:os.system ''",
    "!import_call {<<: {key: os.system}, init: {args: ['touch PATH']}}",
    "!import_call_method {package: torch.nn, package: null, class_name: os, method_name: system}",
    # Modules hold more than what they define.
    "!import_call_method {package: torch.nn.modules.module, class_name: torch, method_name: load, "
    "init: {args: [EVIL], kwargs: {weights_only: false}}}",
    "!import_call_method {package: torch.nn.modules.module.torch.load, "
    "init: {args: [EVIL], kwargs: {weights_only: false}}}",
    "!import_call {key: timm.models.helpers.load_state_dict, "
    "init: {args: [EVIL], kwargs: {weights_only: false}}}",
    "!import_call {key: torchdistill.models.registry.get_model, "
    "init: {args: [model, REPO], kwargs: {source: local}}}",
    "!import_get {key: torchvision.datasets.LSUN}",
    "!import_call {key: srd.run.lock.Claim, init: {args: [PATH]}}",
    "!import_get {key: srd.run.provenance.provenance}",
    "!import_get {key: resnet.extension.UserError}",
    # Objects lead to others: weights to the partial of what prepares their images.
    "!getattr [!getattr [!getattr [!import_get {key: torchvision.models.ResNet18_Weights}, "
    "IMAGENET1K_V1], value], transforms]",
    "!access_by_index_or_key {data: !import_get {key: torchdistill.datasets.registry.DATASET_DICT}, "
    "index_or_key: LSUN}",
    "!call_method {obj: !getattr [!import_get {key: torchvision.datasets.CIFAR10}, meta], "
    "method_name: clear}",
    "!setattr [!import_get {key: torchvision.datasets.CIFAR10}, tgz_md5, x]",
]


class Pickled:
    """Unpickling it leaves `proof` behind."""

    def __init__(self, proof: Path) -> None:
        self.command = f"touch {proof}"

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def write(folder: Path, text: str) -> Path:
    """A recipe, beside a checkpoint and a repository that leave `proof` behind when they run."""
    torch.save({"weight": Pickled(folder / "proof")}, folder / "evil.pth")
    code = f"import pathlib\npathlib.Path({str(folder / 'proof')!r}).touch()\ndef model(): ...\n"
    (folder / "hubconf.py").write_text(code)
    for word, path in (("PATH", "proof"), ("EVIL", "evil.pth"), ("REPO", ".")):
        text = text.replace(word, str(folder / path))
    path = folder / "recipe.yaml"
    path.write_text(text + REST)
    return path


@pytest.mark.parametrize("text", ALLOWED)
def test_what_configurations_need_is_allowed(tmp_path: Path, text: str) -> None:
    read_recipe(write(tmp_path, f"run: {{}}\nroot_dir: {text}"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_refused_with_their_line_and_nothing_ran(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml, line 2"):
        read_recipe(write(tmp_path, f"run: {{}}\nroot_dir: {text}"))
    assert not (tmp_path / "proof").exists()


def test_what_an_allowed_call_loads_is_weights_only(tmp_path: Path) -> None:
    text = (
        "!import_call {key: timm.create_model, "
        "init: {kwargs: {model_name: test_resnet, checkpoint_path: EVIL}}}"
    )
    with pytest.raises(UserError, match="building what it names failed"):
        read_recipe(write(tmp_path, f"run: {{}}\nroot_dir: {text}"))
    with pytest.raises(Exception, match=r"[Ww]eights"):  # as older versions of timm ask for it
        torch.load(tmp_path / "evil.pth", weights_only=False)
    assert not (tmp_path / "proof").exists()


def test_dependencies_are_checked(tmp_path: Path) -> None:
    for module in ("os", "antigravity", "resnet.main", "torch.hub"):
        with pytest.raises(UserError, match="refused"):
            read_recipe(write(tmp_path, f"dependencies: [{module}]"))


def test_repositories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repo_or_dir"):
        read_recipe(write(tmp_path, "run: {}\nroot_dir: {repo_or_dir: a/b}"))


def test_a_trusted_file_may_name_anything(tmp_path: Path) -> None:
    partial = next(text for text in HOSTILE if "value], transforms" in text)
    read_recipe(write(tmp_path, f"run: {{}}\nroot_dir: {partial}"), trusted=True)
    text = "root_dir: !import_call {key: os.path.join, init: {args: [a, b]}}"
    assert read_recipe(write(tmp_path, text), trusted=True).config["root_dir"] == "a/b"


def test_data_path_takes_the_place_of_root_dir_and_its_aliases(tmp_path: Path) -> None:
    path = write(tmp_path, "root_dir: &r /old\ndependencies: []\nrun: {}")
    path.write_text(path.read_text().replace("datasets: {}", "datasets: {x: !join [*r, /train]}"))
    assert read_recipe(path, data_path="/new").config["datasets"]["x"] == "/new/train"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line"),
        ("tran: {}", "did you mean 'train'"),
        ("run: {amp: fp7}", "run.*amp|amp"),
        ("run: {chanels_last: true}", "did you mean 'channels_last'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(write(tmp_path, text))
