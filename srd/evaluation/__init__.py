"""Accuracy, of models and of checkpoints."""
