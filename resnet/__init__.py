"""ResNet-34 teaches ResNet-18, and torchdistill's other methods, from a YAML file."""
