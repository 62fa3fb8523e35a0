"""From the files of a run directory to files that a person reads: no torch, no GPU, nothing computed twice."""
