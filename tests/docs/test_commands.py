"""Every command on the pages: read by its parser, and run where the digits are enough.

Commands run as they stand, in a folder where the configurations of the digits are cut short.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

import resnet.main
from deit import main as deit
from scripts import cifar10, evaluate_released, fetch_checkpoints, photographs, timm_alone
from srd.cli import parse_strictly
from srd.commands import export, predict, report
from srd.data.digits import DigitImages
from srd.errors import exit_code
from srd.export.formats import choose_formats
from srd.models.students import find
from tests.docs.pages import PAGES, ROOT, Block, blocks

DEIT, RESNET = "deit/main.py", "resnet/image_classification.py"
LAUNCHED = {
    "scripts/train_deit.sh": DEIT,
    "scripts/train_resnet.sh": RESNET,
    "scripts/slurm/deit.sbatch": DEIT,
    "scripts/slurm/resnet.sbatch": RESNET,
}
RUN: dict[str, Callable[[Sequence[str]], None]] = {
    DEIT: deit.run,
    RESNET: resnet.main.run,
    "scripts/export.py": export.run,
    "scripts/predict.py": predict.run,
    "scripts/report.py": report.run,
    "scripts/fetch_checkpoints.py": fetch_checkpoints.run,
    "scripts/evaluate_released.py": evaluate_released.run,
}
# read, and not run: they need other packages, or minutes
PARSERS = {
    "scripts/cifar10.py": cifar10.make_parser,
    "scripts/photographs.py": photographs.make_parser,
    "scripts/timm_alone.py": timm_alone.make_parser,
}
VARIABLES = re.findall(r"^#   ([A-Z_]+)  ", (ROOT / "scripts/launch.sh").read_text(), re.M)


class Command(NamedTuple):
    """A line of a bash block, as far as it calls this project.

    Args:
        before: what it is piped from.
        variables: set for it alone.
        launcher: what starts the program, if anything does.
        program: a file of this project.
    """

    where: str
    before: str
    variables: dict[str, str]
    launcher: list[str]
    program: str
    arguments: list[str]

    @property
    def on_digits(self) -> bool:
        return any("configs/digits/" in argument for argument in self.arguments)


def lines(block: Block) -> Iterator[str]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if shlex.split(line, comments=True):
            yield line


def commands(block: Block) -> Iterator[Command]:
    for line in lines(block):
        before, _, last = line.rpartition(" | ")
        words = [word for word in shlex.split(last, comments=True) if word != "..."]
        variables = {}
        while "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        programs = [n for n, word in enumerate(words) if word in {*RUN, *LAUNCHED, *PARSERS}]
        position = programs[0] if programs else 0
        yield Command(
            block.label, before, variables, words[:position], words[position], words[position + 1 :]
        )


# files that a page has its reader write
WRITTEN = {
    block.text.split("\n")[0].removeprefix("# ")
    for block in blocks(ROOT / "docs/extend.md", "python")
}
COMMANDS = [c for page in PAGES for block in blocks(page, "bash") for c in commands(block)]


def check_deit(arguments: list[str]) -> None:
    flags = parse_strictly(deit.make_parser(), arguments)
    find(deit.configure(flags).model.name)


def check_resnet(arguments: list[str]) -> None:
    flags = parse_strictly(resnet.main.make_parser(), arguments)
    assert (ROOT / flags.config).is_file()


def check_export(arguments: list[str]) -> None:
    flags = parse_strictly(export.make_parser(), arguments)
    choose_formats(",".join(flags.format or ["timm"]).split(","))


CHECK: dict[str, Callable[[list[str]], object]] = {
    DEIT: check_deit,
    RESNET: check_resnet,
    "scripts/export.py": check_export,
    "scripts/predict.py": lambda given: parse_strictly(predict.make_parser(), given),
    "scripts/evaluate_released.py": lambda given: parse_strictly(
        evaluate_released.make_parser(), given
    ),
    "scripts/report.py": lambda given: parse_strictly(report.make_parser(), given),
    "scripts/fetch_checkpoints.py": lambda given: fetch_checkpoints.run(["--list", *given]),
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.where}-{Path(c.program).name}")
def test_commands_are_read(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program = LAUNCHED.get(command.program, command.program)
    assert set(command.variables) <= set(VARIABLES)
    if program in PARSERS:
        parse_strictly(PARSERS[program](), command.arguments)
    elif program in CHECK:
        assert (ROOT / command.program).is_file()
        CHECK[program](command.arguments)
        started_by = {"python", "torchrun", "sbatch"} if program == command.program else {"sbatch"}
        assert not command.launcher or command.launcher[0] in started_by
    elif program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK)
        told = set(re.findall(rf"^#   {program} (.+?)(?:  |$)", (ROOT / program).read_text(), re.M))
        assert not command.arguments or shlex.join(command.arguments) in told
    elif program == "pip":
        assert command.arguments[0] == "install"
    elif program == "python" and command.arguments[0] in WRITTEN:
        pass  # run by test_extend.py
    else:
        assert [program, *command.arguments] == ["source", ".venv/bin/activate"]


def cut_short(folder: Path) -> None:
    """Copies of the configurations with few digits, and one epoch."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    for path in (folder / "configs" / "digits").glob("*.yaml"):
        text = path.read_text()
        if "dependencies" in text:  # torchdistill's
            text = re.sub(r"num_epochs: \d+", "num_epochs: 1", text)
            text = re.sub(r"\n +per_class: \d+", "", text)
            text = re.sub(r"\{batch_size: (48|32),", "{batch_size: 10,", text)
            path.write_text(
                re.sub(r"\n( +)split: train", r"\n\1split: train\n\1per_class: 2", text)
            )
            continue
        settings = yaml.safe_load(text)
        settings["data"]["images_per_class"] = 2
        settings["train"] |= {"batch_size": 10, "epochs": 1}
        settings["optim"]["warmup_epochs"] = 0
        if "recipe" in settings["teacher"]:
            settings["teacher"]["recipe"] = str(folder / settings["teacher"]["recipe"])
        path.write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with a digits run, pictures, and a file for torch.hub."""
    folder = tmp_path_factory.mktemp("work")
    cut_short(folder)
    (folder / "hubconf.py").symlink_to(ROOT / "hubconf.py")
    (folder / "photos").mkdir()
    for number, name in enumerate(("cat.jpg", "photos/a.jpg", "photos/b.jpg")):
        DigitImages("val").load(number)[0].resize((40, 30)).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        deit.run(["--train_student", "--config=configs/digits/deit.yaml", "--device=cpu"])
    own = "runs/mobilenetv3_small_050_srd"  # of the README's own pictures
    shutil.copytree(folder / "photos", folder / "my_data" / "val" / "class")
    for place in (own, "runs/deit_tiny_srd", "runs/demo/distilled_seed0"):
        shutil.copytree(folder / "runs/digits_deit_tiny_srd", folder / place)
    return folder


def runs_here(command: Command) -> bool:
    if command.program in (DEIT, RESNET):
        return command.on_digits and command.launcher == ["python"]
    publishing = {"--push-to-hub", "USER/NAME"} & set(command.arguments)
    return command.program in RUN and not publishing and not needs_network(command)


def needs_network(command: Command) -> bool:
    fetching = command.program == "scripts/fetch_checkpoints.py"
    return (fetching and "--list" not in command.arguments) or "released" in command.program


RUNNING = [
    page
    for page in PAGES
    if any(runs_here(c) for block in blocks(page, "bash") for c in commands(block))
]


SLOW = {
    ROOT / "docs" / name: pytest.mark.slow
    for name in ("cache.md", "export.md", "files.md", "report.md", "settings.md", "torchdistill.md")
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=SLOW.get(page, ()), id=str(page.relative_to(ROOT)))
        for page in RUNNING
    ],
)
def test_commands_on_the_digits(page: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    for block in blocks(page, "bash"):
        for command in filter(runs_here, commands(block)):
            training = {"--train_student", "--train_teacher"} & set(command.arguments)
            epochs = 2 if "--extend" in command.arguments else 1
            shorter = [f"--epochs={epochs}"] if command.program == DEIT and training else []
            piped = subprocess.run(
                ["bash", "-c", command.before], capture_output=True, check=True, timeout=60
            ).stdout
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(piped)))
            arguments = [*command.arguments, *shorter]
            code = exit_code(lambda given=arguments, c=command: RUN[c.program](given))
            assert code == 0, command
    python = "\n".join(block.text for block in blocks(page, "python"))
    if "sys.path" not in python:
        exec(python, {"__name__": page.stem})
        return
    subprocess.run(
        [sys.executable, "-c", python],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.on_digits and c.program == DEIT and c.launcher != ["python"]]
    + [c for c in COMMANDS if c.on_digits and c.program == "scripts/train_deit.sh"],
    ids=lambda c: f"{c.where}-{Path(c.program).name}",
)
def test_launchers_on_the_digits(command: Command, trained: Path, tmp_path: Path) -> None:
    arguments = [
        str(trained / word) if word.startswith("configs/") else word for word in command.arguments
    ]
    more = [f"--output={tmp_path}", "--device=cpu", "--name=run"]
    subprocess.run(
        [*command.launcher, command.program, *arguments, *more],
        cwd=ROOT,
        env={**os.environ, **command.variables, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    assert (tmp_path / "run" / "result.json").is_file()
