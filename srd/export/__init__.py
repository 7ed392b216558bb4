"""A student handed on: folders, graphs, cards, predictions."""
