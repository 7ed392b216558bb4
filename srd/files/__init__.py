"""Files of weights and runs: found, read as data, written whole."""
