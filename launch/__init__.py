"""Starting runs: from a workstation through `accelerate launch`, and on clusters. Never imported by `trainer`."""
