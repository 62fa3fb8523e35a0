"""Training: engines, step, loop, state, checkpoints, evaluation, watchdog."""
