"""A run's folder: its lock, its log, where it goes on."""
