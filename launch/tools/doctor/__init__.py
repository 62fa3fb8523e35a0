"""`rankzero doctor`: check this machine and print what to fix."""
