"""`rankzero verify`: check on this machine that every engine makes the same steps."""
