"""Readers of files of weights: torch's, old and new, and safetensors. None of them executes anything."""
