"""`rankzero lint`: check recipes without starting a run."""
