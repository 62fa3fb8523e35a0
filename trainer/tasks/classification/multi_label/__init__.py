"""Classification with any number of labels per row (`task.mode: multi`)."""
