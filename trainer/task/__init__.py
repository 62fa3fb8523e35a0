"""What a task has to provide, and how a task is found. The tasks themselves are in trainer/tasks."""
