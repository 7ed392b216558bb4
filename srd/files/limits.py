"""How much a file from somebody else may ask for: one object with every number."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits far above what honest files need, and far below what a machine has.

    Together they keep a file of less than 1 MB from taking more than 1 GB or five seconds
    (docs/security.md says of which processor).
    """

    # Weights. DeiT with its optimizer's state has 459 tensors, takes 22,176 opcodes and 0.3 MB of
    # pickle.
    tensors: int = 100_000  # and records, and storages
    views: int = 16  # bytes of all tensors over those of their data: tied weights share theirs
    expanded: int = 64 * MIB  # and of tensors that show the same number many times
    opcodes: int = 2_000_000  # of a file's pickles: a second or two
    values: int = 2_000_000  # in containers, each as often as it is referred to
    depth: int = 100  # of containers in containers
    pickle_bytes: int = 64 * MIB  # without the tensors' data
    directory_bytes: int = 12 * MIB  # of a zip archive: 100,000 records with their names
    header_bytes: int = 16 * MIB  # of safetensors: 100,000 tensors with their names
    # Numbers as keys that are not simply counted up: whoever chooses them can make each collide
    # with all before it. 10,000 such cost a quarter of a second.
    number_keys: int = 10_000
    dimensions: int = 64  # of a tensor: torch's own limit

    # What describes a classifier.
    description_bytes: int = 16 * MIB  # of config.json, or of the metadata in an ONNX file
    classes: int = 1_000_000
    text: int = 1_000  # characters of a class's name, or a line of the model card
    image_size: int = 4_096  # pixels, square
    resized: int = 16_384  # pixels of the shorter side before the centre is cut out

    parameters: int = 1 << 30  # of a network by settings; torchvision's largest has 645 million

    # Pictures.
    picture_bytes: int = 512 * MIB
    pixels: int = 89_478_485  # where Pillow begins to warn; 0.4 GB in memory, twice that while read
    slow_pixels: int = 10_000_000  # of formats that Pillow unpacks in Python
    comments: int = 1 << 16  # bytes, of a GIF file
    aspect: int = 500  # the longer side over the shorter, which is what gets resized
    scans: int = 100  # of a JPEG file, each a walk through the whole picture; usual are 1 to 17
    scanned: int = 2_000_000_000  # pixels in all of them

    metrics_bytes: int = 1 << 30  # of a run's metrics.jsonl

    # What a teacher cache says of itself. An epoch of ImageNet-21k has 14 million images.
    cached_images: int = 100_000_000  # of an epoch
    cached_steps: int = 2_000_000
    cached_fields: int = 1_000
    cached_values: int = 2**26  # of an image's field

    # Downloads.
    download_bytes: int = 16 << 30
    download_seconds: float = 6 * 3600.0  # 335 MB at 16 kB/s

    # ONNX files, which run in a process of their own.
    onnx_bytes: int = 2 << 30  # what a protocol buffer can have
    onnx_start_seconds: float = 120.0  # until its packages are imported, on whatever machine
    onnx_load_seconds: float = 5.0  # and a second more for each 20 MB
    onnx_picture_seconds: float = 60.0  # for each picture of a batch
    onnx_memory: int = 4 << 30  # beyond four times the file


LIMITS = Limits()
