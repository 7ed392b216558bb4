"""A data set written once, as Hugging Face `datasets` saves one: Arrow files, read by position.

They are mapped into memory, so opening costs nothing and a picture is found by its number; `--dataset
datasets` reads them, as does a plain `--data-path`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from srd.config.fields import Data
from srd.data.encoded import Encoded, encoded
from srd.data.image_source import BROKEN_IMAGE, one_line
from srd.data.picture_costs import TooLarge
from srd.data.sources import SOURCES
from srd.errors import UserError, clearing_away
from srd.installed import need_extra
from srd.printable import printable

ROWS = 64  # of a record batch, which is written at once
SHARD_BYTES = 500_000_000


@dataclass(frozen=True)
class Packing:
    """How pictures are written.

    Args:
        side: pixels that the shorter side of larger ones is resized to; None: files as they are.
        quality: of the JPEG files that resized ones become; None: PPM files, not compressed.
    """

    side: int | None = None
    quality: int | None = 90

    def content(self, picture: Encoded | Image.Image) -> bytes:
        """The file of a picture, which is decoded to see that it can be; raises BROKEN_IMAGE."""
        image = picture.image if isinstance(picture, Encoded) else picture
        if self.side is not None and min(image.size) > self.side:
            return self._resized(image, self.side)
        plain = isinstance(picture, Encoded) and picture.mode is None
        return picture.data if plain else _file(image, "PNG")  # type: ignore[union-attr]

    def _resized(self, image: Image.Image, side: int) -> bytes:
        factor = side / min(image.size)
        width, height = (max(side, round(factor * length)) for length in image.size)
        small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        if self.quality is None:
            return _file(small, "PPM")
        return _file(small, "JPEG", quality=self.quality)


@clearing_away()
def pack(
    data: Data,
    out: Path,
    packing: Packing,
    *,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Write all splits of a source; `out` is whole, or not there.

    Args:
        progress: is called with the pictures written, and how many there are.

    Returns:
        What to tell of it.

    Raises:
        UserError: `out` exists or cannot be written, the source is none, or a picture cannot be read.
    """
    need_extra("datasets", "datasets", what="packed data sets")
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: name another folder, or remove it")
    train, val, notes = SOURCES[data.dataset](data, True)
    splits = {"train": train, "validation": val}
    sources = {name: source for name, source in splits.items() if source is not None}
    count, done, left = sum(map(len, sources.values())), 0, []
    with _whole(out) as folder:
        _outlines(folder, {name: source.classes for name, source in sources.items()})
        for name, source in sources.items():
            with _Shards(folder / name) as shards:
                for index in range(len(source)):
                    try:
                        picture, target = encoded(source, index)
                        shards.add(packing.content(picture), target, source.name(index))
                    except (*BROKEN_IMAGE, TooLarge) as error:
                        left.append(f"{printable(source.name(index))} ({one_line(error)})")
                        if not skip_broken:
                            raise UserError(
                                f"cannot read {left[0]}; replace the file, or leave such files out "
                                "with --skip-broken"
                            ) from None
                    done += 1
                    progress(done, count)
                if not shards.rows:
                    raise UserError(f"{name} of {data.path} has no picture that can be read")
    out_notes = [f"left out: {name}" for name in left[:10]]
    return [
        *notes,
        *out_notes,
        f"{count - len(left)} pictures in {out}: --data-path {out} reads them",
    ]


def _file(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that is `out` once all is written, and gone if not."""
    draft = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield draft
        draft.chmod(0o777 & ~_umask())
        os.rename(draft, out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error})") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _features(classes: list[str]) -> Any:
    import datasets

    return datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )


def _outlines(folder: Path, classes: Mapping[str, list[str]]) -> None:
    """What the library itself writes beside the rows, of splits that have none yet."""
    import datasets

    for name, names in classes.items():
        empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=_features(names))
        with _quiet():
            empty.save_to_disk(str(folder / name))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*classes]}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress lines."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


class _Shards:
    """The rows of a split, in Arrow files of about `SHARD_BYTES`."""

    def __init__(self, folder: Path) -> None:
        import datasets

        self.folder, self.rows, self.files = folder, 0, 0
        info = json.loads((folder / "dataset_info.json").read_text())
        self.schema = datasets.Features.from_dict(info["features"]).arrow_schema
        self.batch: list[tuple[dict[str, Any], int]] = []
        self.writer: Any = None

    def __enter__(self) -> _Shards:
        return self

    def add(self, content: bytes, target: int, name: str) -> None:
        """A row; the picture keeps the last part of its file's name."""
        self.batch.append(({"bytes": content, "path": os.path.basename(name)}, target))
        self.rows += 1
        if len(self.batch) == ROWS:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        if self.writer is None:
            self.file = open(self.folder / self._name(self.files), "wb")  # noqa: SIM115
            self.writer, self.files = pa.ipc.new_stream(self.file, self.schema), self.files + 1
        columns = zip(self.schema.types, zip(*self.batch, strict=True), strict=True)
        arrays = [pa.array(list(values), kind) for kind, values in columns]
        self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))
        self.batch = []
        if self.file.tell() >= SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.writer = None

    def __exit__(self, kind: object, *_: object) -> None:
        if self.batch and kind is None:
            self._write()
        self._close()
        state = self.folder / "state.json"
        content = json.loads(state.read_text())
        content["_data_files"] = [{"filename": self._name(n)} for n in range(self.files)]
        state.write_text(json.dumps(content))

    @staticmethod
    def _name(number: int) -> str:
        return f"data-{number:05}.arrow"
