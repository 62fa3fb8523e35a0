"""Watch ranks from outside: signals, process trees, exit codes and restarts. Nothing here trains."""
