"""The training engine: runtime, step, loop, checkpoint, signals, evaluation."""
