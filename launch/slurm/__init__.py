"""SLURM: rendering and submitting jobs, following and ending them, and what runs inside them (docs/slurm.md)."""
