"""The shipped tasks, one folder each, found by name."""
