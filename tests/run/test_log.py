"""What a run writes can be read back, and reads after a restart as if it had never stopped."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from srd.errors import RunFailed, UserError
from srd.run.log import RunLog, clock, read_metrics


def step(number: int, loss: float) -> dict[str, Any]:
    return {"epoch": number // 3, "step": number, "loss": loss, "note": "text", "none": None}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def write(folder: Path, numbers: range, loss: float, first_step: int = 0) -> None:
    log = RunLog(folder, first_step=first_step)
    for number in numbers:
        log.row("step", step(number, loss))
    log.info(f"told at {loss}")
    log.close()


def test_rows_are_json_lines(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.row("step", step(0, 0.1))
    log.row("eval", {"epoch": 0, "step": 1, "acc1": 97.5, "images": 500})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before it is closed
    log.close()
    assert [json.loads(line) for line in lines] == [
        {"kind": "step", **step(0, 0.1)},
        {"kind": "eval", "epoch": 0, "step": 1, "acc1": 97.5, "images": 500},
    ]
    assert read_metrics(tmp_path / "metrics.jsonl", "eval")[0]["acc1"] == 97.5
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_numbers_go_to_tensorboard(tmp_path: Path) -> None:
    write(tmp_path, range(3), 0.5)
    assert scalars(tmp_path, "step/loss") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert tags == ["step/loss"]


def test_tensorboard_may_show_other_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.row("eval", {"step": 4, "acc1": 90.0}, board={"acc1_percent": 90.0})
    log.close()
    assert scalars(tmp_path, "eval/acc1_percent") == [(4, 90.0)]


def test_lines_go_to_the_person_and_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path)
    log.info("größe 3")
    log.close()
    assert capsys.readouterr().err == "größe 3\n"
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d größe 3\n", text)


def test_a_restart_drops_what_was_made_after_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(5), 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 5, "lo')
    write(tmp_path, range(3, 7), 2.0, first_step=3)
    losses = [1.0] * 3 + [2.0] * 4
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == list(enumerate(losses))
    assert scalars(tmp_path, "step/loss") == list(enumerate(losses))
    told = (tmp_path / "log.txt").read_text()
    assert "told at 1.0" in told and "told at 2.0" in told


@pytest.mark.parametrize("torn", ['{"kind": "st', '{"kind": "step"}', "[1]", "3", "null", ""])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    write(tmp_path, range(2), 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    RunLog(tmp_path, first_step=2).close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_a_new_run_starts_with_no_rows(tmp_path: Path) -> None:
    write(tmp_path, range(2), 1.0)
    write(tmp_path, range(1), 2.0)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2.0]


def test_other_processes_are_silent_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, main=False)
    log.info("hello")
    log.row("step", step(0, 1.0))
    with log.bar("epoch 1/2", 10) as bar:
        bar.advance(1, {"loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_log_without_a_folder_only_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog(None)
    log.info("hello")
    log.row("step", step(0, 1.0))
    log.close()
    assert capsys.readouterr().err == "hello\n"
    assert list(tmp_path.iterdir()) == []


def test_without_a_terminal_progress_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("srd.run.log.PLAIN_LINE_SECONDS", -1.0)
    with RunLog(None).bar("epoch 2/3", 10, done=4) as bar:
        bar.advance(1, {"loss": 0.123456, "left": "0:10"})
        bar.advance(1)
    assert capsys.readouterr().err == "epoch 2/3  5/10  loss 0.1235  left 0:10\n"


def test_in_a_terminal_of_80_columns_time_left_and_speed_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the longest run there is; a real terminal, since tqdm asks it for its width."""
    primary, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with open(terminal, "w", encoding="utf-8") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        patch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the terminal
        values = {"left": "100:02:03", "images/s": 8123.4, "loss": 6.9134, "ce": 6.9, "kl": 1.5}
        with RunLog(None).bar("epoch 299/300", 375_000, done=374_000) as bar:
            drawn = ""
            while "left" not in drawn.rsplit("\r", 1)[-1]:  # tqdm draws ten times a second
                time.sleep(0.2)
                bar.advance(1, values)
                if select.select([primary], [], [], 0)[0]:
                    drawn += os.read(primary, 65536).decode()
    os.close(primary)
    line = drawn.replace("\x1b[A", "").split("\r")[-1].rstrip("\n")
    assert len(line) <= 80, line
    assert line.startswith("epoch 299/300 100%|") and "left 100:02:03" in line, line
    assert "images/s 8123" in line and "/375000" in line, line


def test_plain_lines_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(None).bar("epoch 1/1", 1000) as bar:
        for _ in range(1000):
            bar.advance(1, {"loss": 1.0})
    assert capsys.readouterr().err.count("\n") <= 1


class FullDisk(io.StringIO):
    name = "metrics.jsonl"

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_link_or_a_pipe_in_its_place_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot write the log of"):
        RunLog(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot write the log of|is no file that can be read"):
        RunLog(tmp_path)


def test_a_full_disk_fails_the_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log._metrics = FullDisk()
    with pytest.raises(RunFailed, match=r"cannot write metrics\.jsonl .*No space left"):
        log.row("step", step(0, 1.0))


@pytest.mark.parametrize(
    "seconds, said", [(0, "0:00:00"), (61.9, "0:01:01"), (3723, "1:02:03"), (360000, "100:00:00")]
)
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_tensorboard_gets_every_turn_of_a_picture(tmp_path: Path) -> None:
    """As SSKD trains on: (B, turns, C, H, W)."""
    log = RunLog(tmp_path)
    log.pictures(torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 3, 8, 8), 0)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    with Image.open(io.BytesIO(events.Images("training_batch")[0].encoded_image_string)) as grid:
        assert [grid.getpixel(at)[0] for at in ((5, 5), (35, 5), (15, 15))] == [0, 153, 255]


def test_tensorboard_gets_settings_pictures_and_spectra(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.settings("mine", {"optim": {"lr": 0.1, "betas": None}, "name": "a`b\x1b"})
    images = torch.stack([torch.full((3, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    log.pictures(images, 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    log.row("projector", {"epoch": 0, "step": 1, "largest": 2.0, "singular_values": [2.0, 1.0]})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["training_batch"]
    with Image.open(io.BytesIO(events.Images("training_batch")[0].encoded_image_string)) as grid:
        assert [grid.getpixel((x, 5))[0] for x in (5, 15, 25)] == [0, 127, 255]
    assert events.Histograms("projector/singular_values")[0].histogram_value.max == 2.0
    (content,) = [
        metadata.plugin_data.content
        for _, metadata in (
            (t, events.SummaryMetadata(t)) for t in ("_hparams_/session_start_info",)
        )
    ]
    start = HParamsPluginData.FromString(content).session_start_info
    config = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    columns = HParamsPluginData.FromString(config).experiment.metric_infos
    assert [column.name.tag for column in columns][:2] == ["eval/acc1", "eval/acc5"]
    assert start.hparams["optim.lr"].number_value == 0.1
    assert start.hparams["run"].string_value == "mine"
    assert start.hparams["name"].string_value == r"a`b\x1b"
