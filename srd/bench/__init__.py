"""Benchmarks: ours and a plain reference in turn, beside the floor that the machine sets."""
