"""The names of the files in an exported folder."""

CARD = "README.md"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"  # timm's
ONNX = "model.onnx"
TORCH = "model.pt2"
