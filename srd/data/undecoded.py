"""Pictures that a GPU decodes: workers draw, and hand over the files (`data.pixels: device`).

Of a plain, whole JPEG file a worker reads no more than the head. nvImageCodec decodes the crops of a
batch, which torch resizes. What it cannot decode is decoded as in a worker, by the process that trains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.dlpack import from_dlpack

from srd.data.encoded import END, Encoded
from srd.data.fast_views import Crop, Flip, decoded, resized
from srd.data.image_source import BROKEN_IMAGE, one_line
from srd.errors import UserError
from srd.installed import PROJECT
from srd.printable import printable

THREADS = 4  # of the CPU, which read heads and unpack codes
NO_GPU = -99_999  # nvImageCodec's number, for which 0.8 has no name in Python
BROKEN = "0.9."  # crops end the process on an H100: NVIDIA/nvImageCodec issue 55


@dataclass(frozen=True)
class Cut:
    """What becomes of a picture.

    Args:
        name: of its file, for messages.
        box: top, left, height and width of the crop.
        size: height and width that it is resized to.
        mode: `bilinear` or `bicubic`.
    """

    name: str
    box: tuple[int, ...]
    size: tuple[int, ...]
    mode: str
    flipped: bool = False


class Undecoded(NamedTuple):
    """What stands in for the pixels of a view: a file, (bytes,) uint8, and what becomes of it."""

    data: Tensor
    cut: Cut

    @property
    def shape(self) -> torch.Size:
        """Of the view."""
        return torch.Size((3, *self.cut.size))


class Files(NamedTuple):
    """The files of a batch, one after the other in `data`, and which of its images they become."""

    data: Tensor
    sizes: list[int]
    places: list[int]
    cuts: list[Cut]


def gather_files(images: Sequence[Tensor | Undecoded]) -> Files | None:
    """Of a batch's views those that are not decoded yet; None where all are."""
    views = {place: image for place, image in enumerate(images) if isinstance(image, Undecoded)}
    if not views:
        return None
    data = [view.data for view in views.values()]
    sizes, cuts = [len(one) for one in data], [view.cut for view in views.values()]
    return Files(torch.cat(data), sizes, [*views], cuts)


def decode_later(steps: Sequence[Any]) -> list[Any]:
    """Steps of the fast path, up to `as_tensor`, that leave decoding to a GPU; as they are where it knows
    not all of them."""
    crop, *flips, last = steps
    if type(crop) is not Crop or any(type(flip) is not Flip for flip in flips):
        return [*steps]
    return [
        CropLater(crop.step),
        *(FlipLater(flip.probability) for flip in flips),
        _TensorLater(last),
    ]


class CropLater(Crop):
    """A crop's draws; of pictures that are left to Pillow, or whose end is missing, all of it."""

    def __call__(self, picture: Encoded | Image.Image) -> Any:
        if not isinstance(picture, Encoded) or not _is_whole(picture):
            return super().__call__(picture)
        box, mode = self.draw(*decoded(picture.size))
        if 0 in box[2:]:
            return resized(np.empty((0, 0, 3), np.uint8), box, 1, self.size, mode)
        data = torch.frombuffer(bytearray(picture.data), dtype=torch.uint8)
        return Undecoded(data, Cut(picture.name or "a training picture", box, self.size, mode))


def _is_whole(picture: Encoded) -> bool:
    head = decoded(lambda: picture.head)
    upright = head is not None and not (picture.turn and head.orientation != 1)
    return upright and picture.read_as == "RGB" and picture.data.endswith(END)


class FlipLater(Flip):
    """Flips what is decoded, and remembers it of what is not."""

    def __call__(self, pixels: Any) -> Any:
        if not isinstance(pixels, Undecoded):
            return super().__call__(pixels)
        cut = pixels.cut
        return Undecoded(pixels.data, replace(cut, flipped=cut.flipped != self.draw()))


class _TensorLater:
    """The last step, of what is decoded."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def __call__(self, pixels: Any) -> Any:
        return pixels if isinstance(pixels, Undecoded) else self.step(pixels)


def with_files(images: Tensor, files: Files) -> Tensor:
    """Bytes (B, 3, H, W) of a batch: images that are decoded, and files that become some on their device.

    Raises:
        UserError: a file cannot be decoded.
    """
    device, cuts = images.device, files.cuts
    # A copy that is not pinned: nvImageCodec may read after the batch has given its memory back.
    data = files.data.clone().split(files.sizes)
    crops = decoded_crops(data, cuts, device) if device.type == "cuda" else [None] * len(cuts)
    views: dict[int, Tensor] = {}
    for place, file, cut, crop in zip(files.places, data, cuts, crops, strict=True):
        pixels = _decoded_here(file, cut).to(device) if crop is None else resized_crop(crop, cut)
        views[place] = pixels.flip(2) if cut.flipped else pixels
    others = iter(images)
    count = len(images) + len(views)
    batch = torch.stack([views[n] if n in views else next(others) for n in range(count)])
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return batch.contiguous(memory_format=layout)


def decoded_crops(
    files: Sequence[Tensor], cuts: Sequence[Cut], device: torch.device
) -> list[Tensor | None]:
    """What nvImageCodec sees in the boxes, (height, width, 3) uint8 on the device; None where nothing."""
    codec, decoder = _codec(), _decoder(device)
    streams = []
    for file, cut in zip(files, cuts, strict=True):
        top, left, height, width = cut.box
        region = codec.Region(top, left, top + height, left + width)
        try:
            stream = codec.CodeStream(file.numpy()).get_sub_code_stream(region=region)
        except RuntimeError:
            stream = None
        streams.append(stream)
    params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    known = [one for one in streams if one is not None]
    crops = iter(decoder.decode(known, params=params, cuda_stream=stream) if known else [])
    seen = (None if one is None else next(crops) for one in streams)
    return [None if one is None else _tensor(one) for one in seen]


def _tensor(image: Any) -> Tensor:
    """nvImageCodec's image, where it is."""
    host = image.buffer_kind == _codec().ImageBufferKind.STRIDED_HOST  # by DLPack it asks for a GPU
    return torch.from_numpy(np.asarray(image)) if host else from_dlpack(image)


def resized_crop(crop: Tensor, cut: Cut) -> Tensor:
    """(height, width, 3) bytes as (3, H, W), antialiased, as the fast path's."""
    images = crop.permute(2, 0, 1)[None].float()
    images = F.interpolate(images, cut.size, mode=cut.mode, antialias=True, align_corners=False)
    return images[0].round_().clamp_(0, 255).to(torch.uint8)


def _decoded_here(file: Tensor, cut: Cut) -> Tensor:
    """A view's pixels (3, H, W) as a worker makes them."""
    try:
        pixels, scale = Encoded(file.numpy().tobytes()).pixels(cut.box, (cut.size[0], cut.size[1]))
    except BROKEN_IMAGE as error:
        raise UserError(
            f"cannot read {printable(cut.name)} ({one_line(error)}); replace the file"
        ) from None
    seen = resized(pixels, cut.box, scale, cut.size, cut.mode)
    return torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)


def why_not_on(device: torch.device) -> str:
    """Why pictures are not decoded on a device; empty where they are."""
    if device.type != "cuda":
        return "there is no GPU"
    try:
        if (version := _codec().__version__).startswith(BROKEN):
            return (
                f"nvImageCodec {version} decodes no crops on a GPU, and may end the process: "
                "pip install 'nvidia-nvimgcodec-cu13[nvjpeg]<0.9', or -cu12 of CUDA 12"
            )
        file = BytesIO()
        Image.new("RGB", (32, 32)).save(file, "JPEG")
        data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        cut = Cut("", (8, 8, 16, 16), (16, 16), "bilinear")
        if decoded_crops([data], [cut], device)[0] is not None:
            return ""
        reason = "it gave no picture"
    except ImportError:
        return f"nvImageCodec is not installed: pip install '{PROJECT}[gpu]'"
    except (RuntimeError, AttributeError, TypeError) as error:  # or its interface is another
        reason = one_line(error)
    return f"nvImageCodec decodes nothing here ({reason})"


@cache
def _codec() -> Any:
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a picture is told of in our own words
    with _without_a_word():  # of the libraries for other formats, which are not there
        from nvidia import nvimgcodec

    return nvimgcodec


@contextmanager
def _without_a_word() -> Iterator[None]:
    """What libraries write to the process's standard error is left out, whatever they write it with."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@cache
def _decoder(device: torch.device) -> Any:
    """One that depends on the picture alone, and rounds alike on every GPU.

    Not the engines that some GPUs have for JPEG: they write before what the stream still reads is
    read (meta-pytorch/torchcodec pull request 1634).
    """
    codec = _codec()
    if device.type == "cpu":
        return codec.Decoder(
            device_id=NO_GPU,
            max_num_cpu_threads=1,
            backends=[codec.Backend(codec.CPU_ONLY)],
        )
    return codec.Decoder(
        device_id=device.index if device.index is not None else torch.cuda.current_device(),
        max_num_cpu_threads=THREADS,
        backends=[codec.Backend(codec.HYBRID_CPU_GPU)],
    )
