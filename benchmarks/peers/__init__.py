"""rankzero alongside other trainers: the same model, rows and tokens of a step, each peer in its own environment."""
