"""`python -m trainer train …`: never starts a launcher."""

import sys

from trainer.cli import app, run_app

if __name__ == "__main__":
    sys.exit(run_app(app))
