"""`rankzero compare`: differences of runs on the same rows, with intervals and tests."""
