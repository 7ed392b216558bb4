"""A wheel without extras, in an environment of its own far from the checkout, is the whole project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import torchvision
from PIL import Image

from srd.errors import UserError
from srd.files import locate
from srd.files.locate import recipe_file

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("torchdistill", "onnx", "onnxscript", "onnxruntime", "datasets", "matplotlib")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build/ behind, and reads what lies in one."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("srd", "deit", "resnet", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    (folder / "ckpts").mkdir()
    (folder / "ckpts" / "weights.pth").write_bytes(b"stays at home")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", folder / "dist", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the running one's packages without those of the extras."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    elsewhere = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet",
         "--no-deps", "--no-index", "--disable-pip-version-check", wheel],
        env=elsewhere, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (packages,) = folder.glob("lib/*/site-packages")
    running = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    hidden = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))"
    (packages / "running.pth").write_text("\n".join([*running, hidden]))
    return folder


@pytest.fixture
def command(installed: Path, tmp_path: Path) -> Command:
    """`command("srd", ...)` runs a program of that environment in an empty folder."""

    def run(program: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [installed / "bin" / program, *map(str, arguments)], cwd=tmp_path, text=True,
            env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def test_what_is_in_the_wheel(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        about = message_from_bytes(archive.read(metadata))
    sources = {p.relative_to(ROOT).as_posix() for d in ("srd", "deit", "resnet")
               for p in (ROOT / d).rglob("*.py")}  # fmt: skip
    recipes = {f"srd/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert (
        names == sources | recipes | {"srd/py.typed", "srd/report/page.css"} and len(recipes) >= 7
    )
    needed = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in needed if line.startswith(EXTRAS)]
    assert {line.split(">")[0] for line in needed} >= {"torch", "timm", "scikit-learn"}


# In one process: each command alone takes seconds to import torch.
COMMANDS = """
import json, sys
import deit, resnet, srd
from srd.commands import run
for arguments in json.loads(sys.argv[1]):
    run(arguments)
print(json.dumps([module.__file__ for module in (srd, deit, resnet)]))
"""


@pytest.mark.slow
def test_a_digits_student_is_trained_predicts_and_is_exported(
    command: Command, installed: Path, tmp_path: Path, random_teacher: Path
) -> None:
    Image.linear_gradient("L").save(tmp_path / "x.png")
    # without torchdistill, too, a plain ResNet is known as one
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "resnet18.pth")
    lines = [
        "train --config=configs/digits/deit.yaml --teacher=test_byobnet --device=cpu --epochs=2 "
        f"--teacher-checkpoint={random_teacher} --batch-size=10 --set=data.images_per_class=3 "
        "--set=optim.warmup_epochs=1 --name=digits",
        "predict runs/digits x.png --json --device=cpu",
        "export runs/digits --format safetensors",
        "predict exports/digits x.png --json --device=cpu",
        "predict resnet18.pth x.png --json --device=cpu",
    ]
    done = command("python", "-c", COMMANDS, json.dumps([line.split() for line in lines]))
    result = json.loads((tmp_path / "runs/digits/result.json").read_text())
    assert result["updates"] == 6 and result["images"] == 500
    assert (tmp_path / "exports/digits/model.safetensors").is_file()
    *_, files = printed = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(installed) for file in json.loads(files))
    run, export, resnet = (json.loads(line)["top"] for line in printed if line[:8] == '{"image"')
    assert run == export and (len(run), len(resnet)) == (5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "run"], "model.onnx files need onnx, onnxscript, onnxruntime: pip install"),
        (["report", "runs"], "matplotlib: pip install 'simple-recipe-distillation[report]'"),
        (["demo"], "demo is no command but a script, scripts/demo.sh, of a checkout"),
    ],
    ids=["onnx", "matplotlib", "script"],
)
def test_what_is_not_installed_is_told_in_a_line(
    command: Command, arguments: list[str], message: str
) -> None:
    told = command("srd", *arguments, code=2).stderr
    assert message in told and told.count("\n") == 1, told


def test_the_resnet_half_names_its_extra(command: Command) -> None:
    told = command("python", "-m", "resnet.main", "--config=configs/res3418.yaml", code=2).stderr
    assert "pip install 'simple-recipe-distillation[resnet]'" in told and told.count("\n") == 1


def test_a_recipe_is_found_here_before_among_the_projects_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/digits/teacher.yaml"
    assert recipe_file(name) == locate.PACKAGE / name and recipe_file(name).is_file()
    (tmp_path / "configs" / "digits").mkdir(parents=True)
    (tmp_path / name).write_text("name: mine")
    assert recipe_file(name).read_text() == "name: mine"
    with pytest.raises(UserError, match=r"did you mean 'configs/digits/resnet\.yaml'"):
        recipe_file("configs/digits/resnets.yaml")


def test_requirements_follow_from_pyproject() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {
        "wandb",
        "mlflow",
        "trackio",
        "gpu",
    }  # one's own choice, or for one's own GPU
    for file, names in (("requirements.txt", extras - {"dev"}), ("requirements-dev.txt", extras)):
        lines = [line for line in (ROOT / file).read_text().splitlines() if line[0] != "#"]
        assert len(lines) == 1 and lines[0].startswith("-e .["), file
        assert set(lines[0][len("-e .[") : -1].split(",")) == names
