"""Runs side by side: a table, curves, and one page, made from what the runs left in their folders."""
