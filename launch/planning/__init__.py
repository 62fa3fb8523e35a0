"""What a run will need, computed without running it: see docs/plan.md. `launch.plan` is the command."""
