"""A run's folder: made ready, gone on with, set aside, and never overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from srd.distributed.signals import StopSignals
from srd.errors import RunFailed, UserError
from srd.files.checkpoint import load_file, save_state
from srd.run.folder import RunFolder
from srd.run.opening import open_run
from srd.run.provenance import provenance
from srd.run.resume import Opened, load_resume
from srd.run.state import Misfit

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"seed": 0, "name": "a", "optim": {"lr": 0.1}, "train": {"epochs": 3}}
NOT_RECIPE = ("name",)


def state_of(recipe: dict[str, Any] = RECIPE, **more: Any) -> dict[str, Any]:
    return {"config": recipe, "position": {"epoch": 1, "step": 2, "updates": 7}, **more}


def folder_with(tmp_path: Path, *names: str) -> RunFolder:
    folder = RunFolder(tmp_path, "a")
    folder.prepare()
    for name in names:
        folder.save(folder.checkpoints / name, state_of(name=name))
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def open_again(
    folder: RunFolder,
    resume: str = "auto",
    settings: Mapping[str, Any] = RECIPE,
    identity: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> Opened:
    return open_run(
        folder, resume, settings=settings, identity=identity, not_recipe=NOT_RECIPE, **more
    )


def reopen(folder: RunFolder, resume: str = "auto") -> dict[str, Any] | None:
    return open_again(folder, resume).state


def test_a_folder_is_laid_out_as_the_contract_says(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs", "tiny")
    folder.prepare()
    folder.prepare()
    at = tmp_path / "runs" / "tiny"
    assert (folder.path, folder.checkpoints) == (at, at / "checkpoints")
    names = {
        "last": "checkpoints/last.pth",
        "best": "checkpoints/best.pth",
        "config": "config.yaml",
        "metrics": "metrics.jsonl",
        "student": "student.safetensors",
        "result": "result.json",
    }
    assert all(getattr(folder, field) == at / name for field, name in names.items())
    assert os.listdir(at) == ["checkpoints"] and os.listdir(folder.checkpoints) == []


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder("~/runs", "a").path == tmp_path / "runs/a"


def test_leftovers_of_a_killed_save_are_cleared(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    (folder.checkpoints / ".last.pth.abc.part").write_text("half")
    (folder.path / ".config.yaml.abc.part").write_text("half")
    folder.prepare()
    assert os.listdir(folder.checkpoints) == ["last.pth"]
    assert os.listdir(folder.path) == ["checkpoints"]


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "wandb"])
def test_nothing_is_written_or_deleted_where_a_link_leads(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".mine.part").write_text("precious")
    (elsewhere / "last.pth").write_text("no checkpoint")
    save_state(elsewhere / "best.pth", state_of())
    before = {file.name: file.read_bytes() for file in elsewhere.iterdir()}
    folder = folder_with(tmp_path, "last.pth")
    if name == "checkpoints":
        shutil.rmtree(folder.checkpoints)
    (folder.path / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name} is a link"):
        reopen(RunFolder(tmp_path, "a"))
    assert {file.name: file.read_bytes() for file in elsewhere.iterdir()} == before


@pytest.mark.parametrize("where", ["file", "file/runs", "."])
@pytest.mark.parametrize("resume", ["auto", "none"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, where: str, resume: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a").write_text("a file where the run's folder should be")
    folder = RunFolder(tmp_path / where, "a")
    with pytest.raises(UserError, match=f"cannot write .*{folder.path} .*--output"):
        reopen(folder, resume)
    assert (tmp_path / "a").read_text().startswith("a file")


def test_an_earlier_run_is_set_aside(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    assert folder.set_aside() == tmp_path / "a.1"
    folder_with(tmp_path, "best.pth")
    assert folder.set_aside() == tmp_path / "a.2"
    assert os.listdir(tmp_path / "a.1/checkpoints") == ["last.pth"]
    assert os.listdir(tmp_path / "a.2/checkpoints") == ["best.pth"]


def test_nothing_is_set_aside_where_nothing_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "a")
    assert folder.set_aside() is None
    folder.path.mkdir()
    assert folder.set_aside() is None


def test_the_last_checkpoint_is_resumed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "best.pth", "epoch_0001.pth", "last.pth")
    assert folder.find_resume() == (folder.last, [])
    assert RunFolder(tmp_path, "other").find_resume() == (None, [])


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    names = ["epoch_0001.pth", "epoch_0010.pth", "epoch_0002.pth", "best.pth", "last.pth"]
    folder = folder_with(tmp_path, *names)
    order = ["last.pth", "epoch_0010.pth", "epoch_0002.pth", "epoch_0001.pth", "best.pth"]
    paths = [folder.checkpoints / name for name in order]
    for age, path in enumerate(paths):
        os.utime(path, (1000 - age, 1000 - age))
    for number, path in enumerate(paths):
        truncate(path)
        os.utime(path, (1000 - number, 1000 - number))
        rest = paths[number + 1 :]
        assert folder.find_resume() == (rest[0] if rest else None, paths[: number + 1])
    assert folder.find_resume() == (None, paths)


def test_what_is_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "best.pth")
    (folder.checkpoints / "gone.pth").symlink_to(tmp_path / "nowhere")
    (folder.checkpoints / "folder.pth").mkdir()
    assert folder.find_resume() == (folder.best, [])


def test_a_new_run_has_no_state_and_its_configuration_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "a")
    assert reopen(folder) is None
    assert yaml.safe_load(folder.config.read_text()) == RECIPE


def test_another_text_may_stand_for_the_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "a")
    open_again(folder, config_text="# as it was written\nseed: 0\n")
    assert folder.config.read_text() == "# as it was written\nseed: 0\n"


def test_resume_auto_goes_on(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "best.pth", "last.pth")
    assert reopen(folder)["name"] == "last.pth"
    truncate(folder.last)
    assert reopen(folder)["name"] == "best.pth"


def test_a_damaged_checkpoint_is_named_and_kept_aside(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "best.pth", "last.pth")
    truncate(folder.last)
    torn = folder.last.read_bytes()
    (note,) = open_again(folder).notes
    assert str(folder.last) in note and str(folder.best) in note and "damaged" in note
    assert sorted(os.listdir(folder.checkpoints)) == ["best.pth", "last.pth.damaged"]
    assert folder.last.with_name("last.pth.damaged").read_bytes() == torn


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_the_last_few_are_kept(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder = RunFolder(tmp_path, "a")
    folder.prepare()
    for number in range(6):
        folder.keep_last(3)
        assert number == 0 or load_file(folder.last)["number"] == number - 1
        folder.save(folder.last, state_of(number=number))
    names = ("last.pth", "last.1.pth", "last.2.pth")
    assert sorted(os.listdir(folder.checkpoints)) == sorted(names)
    assert [load_file(folder.checkpoints / name)["number"] for name in names] == [5, 4, 3]
    assert folder.find_resume()[0] == folder.last
    for name in names[:2]:
        truncate(folder.checkpoints / name)
    assert folder.find_resume()[0] == folder.checkpoints / "last.2.pth"


def test_only_the_last_is_kept_when_one_is_asked_for(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    folder.keep_last(1)
    folder.save(folder.last, state_of(number=1))
    assert os.listdir(folder.checkpoints) == ["last.pth"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
SLURM = {"SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    "first, second, goes_on",
    [
        ({}, {}, False),
        (TORCHRUN, TORCHRUN, True),  # the same parent: torchrun's agent
        ({}, TORCHRUN, False),
        (SLURM, {**SLURM, "SLURM_RESTART_COUNT": "1"}, True),
        (SLURM, SLURM, False),  # a second command in the same allocation
        (SLURM, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, False),
    ],
)
@pytest.mark.parametrize("resume", ["none", "elsewhere.pth"])
def test_what_is_started_again_goes_on(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], goes_on: bool, resume: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """--resume none and --resume FILE are for the first start; torchrun and SLURM repeat the command."""
    save_state(tmp_path / "elsewhere.pth", state_of(name="elsewhere"))
    resume = str(tmp_path / resume) if resume != "none" else resume
    folder = RunFolder(tmp_path, "a")
    with monkeypatch.context() as patch:
        for name, value in first.items():
            patch.setenv(name, value)
        reopen(folder, resume)
    folder.save(folder.last, state_of(name="last"))
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    state = reopen(folder, resume)
    if goes_on:
        assert state["name"] == "last"
    else:
        assert (state and state["name"]) == (None if resume == "none" else "elsewhere")


def test_resume_auto_with_only_damage_asks_what_to_do(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    truncate(folder.last)
    with pytest.raises(UserError, match=r"last\.pth is damaged .*--resume none"):
        reopen(folder)
    assert folder.last.exists()


def test_resume_none_starts_anew_and_keeps_the_old(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    assert reopen(folder, "none") is None
    assert os.listdir(folder.checkpoints) == []
    assert load_file(tmp_path / "a.1/checkpoints/last.pth")["name"] == "last.pth"


def test_resume_from_a_file(tmp_path: Path) -> None:
    save_state(tmp_path / "elsewhere.pth", state_of(name="elsewhere"))
    folder = folder_with(tmp_path, "last.pth")
    assert reopen(folder, str(tmp_path / "elsewhere.pth"))["name"] == "elsewhere"
    with pytest.raises(UserError, match="no checkpoint at"):
        reopen(folder, str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_a_run_keeps_others_out_of_its_folder_until_it_is_released(
    tmp_path: Path, resume: str
) -> None:
    lock = tmp_path / "a" / ".lock"
    for folder in (RunFolder(tmp_path, "a"), folder_with(tmp_path, "last.pth")):  # new, then old
        reopen(folder, resume)
        assert lock.read_text().startswith(f"process {os.getpid()}")
        folder.release()
        assert not lock.exists()


# Another process's run: saves once more after a second, and leaves.
LEAVING = f"""
import sys, time
from srd.run.folder import RunFolder
folder = RunFolder(sys.argv[1], "a")
folder.prepare()
folder.claim()
print("there", flush=True)
time.sleep(1)
folder.save(folder.last, {state_of(name="saved on leaving")})
"""


def test_a_run_goes_on_from_what_the_one_before_saved_on_leaving(tmp_path: Path) -> None:
    leaving = subprocess.Popen(
        [sys.executable, "-c", LEAVING, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert leaving.stdout is not None and leaving.stdout.readline() == b"there\n"
    state = reopen(RunFolder(tmp_path, "a"))
    assert state is not None and state["name"] == "saved on leaving"
    assert leaving.wait(timeout=30) == 0
    leaving.stdout.close()


def test_a_changed_recipe_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    changed = {**RECIPE, "name": "b", "optim": {"lr": 0.2}, "train": {"epochs": 4}}
    with pytest.raises(UserError) as caught:
        open_again(folder, settings=changed)
    said = str(caught.value)
    assert "optim.lr: 0.1 -> 0.2" in said and "train.epochs: 3 -> 4" in said
    assert "name: " not in said and "--resume none" in said and "\n" not in said
    assert os.listdir(folder.path) == ["checkpoints"]


def test_another_identity_is_another_recipe(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    folder.save(folder.last, state_of({**RECIPE, "identity": {"classes": 10}}))
    assert open_again(folder, identity={"classes": 10}).state is not None
    with pytest.raises(UserError, match=r"identity\.classes: 10 -> 3"):
        open_again(folder, identity={"classes": 3})


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"config": RECIPE}, {"position": {}},
                                     {"config": "text", "position": {}}], ids=str)  # fmt: skip
def test_a_file_that_is_no_runs_checkpoint(tmp_path: Path, content: dict[str, Any]) -> None:
    save_state(tmp_path / "a.pth", content)
    with pytest.raises(Misfit):
        load_resume(tmp_path / "a.pth", RECIPE, not_recipe=())
    with pytest.raises(UserError, match=r"a\.pth cannot be resumed: "):
        reopen(RunFolder(tmp_path, "a"), str(tmp_path / "a.pth"))


def test_results_are_read_back(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert folder.read_result() is None
    folder.write_result({"acc1": 98.5, "versions": {}})
    assert folder.read_result() == {"acc1": 98.5, "versions": {}}
    for torn in ('{"acc1": 9', "[1]", ""):
        folder.result.write_text(torn)
        assert folder.read_result() is None
    folder.result.unlink()
    os.mkfifo(folder.result)  # not waited for
    assert folder.read_result() is None


@pytest.mark.parametrize("score", [None, "9", [1], -1, 101, float("nan"), 10**400])
def test_a_result_without_scores_is_no_finished_runs(tmp_path: Path, score: Any) -> None:
    folder = folder_with(tmp_path)
    folder.write_result({"acc1": 98.5, "best_acc1": 99})
    assert folder.finished() == folder.read_result()
    folder.write_result({"acc1": 98.5, "best_acc1": score})
    assert folder.finished() is None
    folder.write_result({"acc1": 98.5})
    assert folder.finished() is None


def send(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_noted_not_obeyed(number: int, code: int) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals().listening() as signals:
        assert signals.received is None
        send(number)
        assert (signals.received, signals.code) == (number, code)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_is_obeyed() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignals().listening():
        send(signal.SIGTERM, signal.SIGINT)
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_changes_nothing() -> None:
    with StopSignals().listening() as signals:
        send(signal.SIGTERM, signal.SIGTERM)
        assert signals.code == 143


def test_provenance_names_versions_and_command() -> None:
    found = provenance()
    assert set(found) == {"command", "versions", "git_commit"}
    assert {"python", "torch", "timm", "numpy"} <= set(found["versions"])


def test_a_checkpoint_from_before_class_names_were_recorded_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    folder.save(folder.last, state_of({**RECIPE, "identity": {"classes": 10}}))
    identity = {"classes": 10, "class_names": ["cat"]}
    assert open_again(folder, identity=identity).state is not None


def test_settings_of_an_earlier_version_are_read_as_todays(tmp_path: Path) -> None:
    """What a checkpoint says of its settings is brought up to date before it is compared."""
    folder = folder_with(tmp_path)
    earlier = {**RECIPE, "optim": {"rate": 0.1}, "identity": {"classes": 10}}
    folder.save(folder.last, state_of(earlier))

    def upgrade(settings: Mapping[str, Any]) -> dict[str, Any]:
        assert "identity" not in settings
        return {**settings, "optim": {"lr": settings["optim"]["rate"]}}

    identity = {"classes": 10}
    assert open_again(folder, identity=identity, upgrade=upgrade).updates == 7
    changed = {**RECIPE, "optim": {"lr": 0.2}}
    with pytest.raises(UserError, match=r"optim\.lr: 0\.1 -> 0\.2"):
        open_again(folder, settings=changed, identity=identity, upgrade=upgrade)
    with pytest.raises(UserError, match=r"optim\.rate"):
        open_again(folder, identity=identity)


@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_nothing_is_written_where_the_folder_is_another_one(tmp_path: Path, what: str) -> None:
    folder = folder_with(tmp_path, "last.pth")
    folder.path.rename(tmp_path / "elsewhere")
    if what == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    if what == "replaced":
        folder.path.mkdir()
    for write in (
        lambda: folder.save(folder.last, state_of()),
        lambda: folder.keep_last(2),
        lambda: folder.write_result({}),
    ):
        with pytest.raises(RunFailed, match="moved or deleted"):
            write()
    assert not folder.path.exists() or not os.listdir(folder.path)


BAD_NAMES = [
    ".",
    "..",
    "../a",
    "a/../b",
    "/a",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "x" * 201,
    "a/./b",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_leads_to_a_folder_below_the_output(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--name should"):
        RunFolder(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "study/a", "größe", "a b", "..a", "a.1", "x" * 200])
def test_other_names_are_free(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path, name)
    folder.prepare()
    assert folder.path.is_relative_to(tmp_path) and folder.checkpoints.is_dir()


def test_an_output_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write the output folder .*too long"):
        reopen(RunFolder(tmp_path / ("x" * 300), "a"))


def test_a_number_to_keep_that_no_disk_holds(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "last.pth")
    folder.keep_last(2**31 - 1)
    assert sorted(os.listdir(folder.checkpoints)) == ["last.1.pth", "last.pth"]
