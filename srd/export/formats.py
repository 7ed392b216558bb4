"""What an exported folder holds: the formats that one can ask for, and the names of the files."""

from __future__ import annotations

FORMATS = ("safetensors", "onnx", "torch", "timm")

CARD = "README.md"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"  # timm's
ONNX = "model.onnx"
TORCH = "model.pt2"
