"""The shared core: the method, data, checkpoints, processes and logs."""
