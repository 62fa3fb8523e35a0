"""What runs an artifact: a common part and one for each kind of program. `program.py` makes a run.py of two of them."""
