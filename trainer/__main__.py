"""`python -m trainer`: never starts a launcher."""

import sys

from trainer.cli import app, run_app
from trainer.errors import UsageError
from trainer.srun import adopt_ranks

if __name__ == "__main__":
    try:
        adopt_ranks()
    except UsageError as error:
        sys.exit(f"rankzero: {error}")
    sys.exit(run_app(app))
