"""Run `rankzero train` for a sweep: it saves and ends, as on SIGTERM, when the sweep is killed."""

from __future__ import annotations

import signal

from launch.cli import main
from launch.supervise.signals import end_with_parent

if __name__ == "__main__":
    end_with_parent(signal.SIGTERM)
    main()
