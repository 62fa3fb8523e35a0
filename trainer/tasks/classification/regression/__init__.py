"""Regression: one or more numbers per row (`task.mode: regression`)."""
