"""`rankzero plan`: memory, steps, time and disk of a run, before anything is started."""
