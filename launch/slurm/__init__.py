"""SLURM: render and submit jobs, follow and end them, and what runs inside them (docs/reference/slurm.md)."""
