"""`python -m trainer`: never starts a launcher."""

import sys

from trainer.cli import app, run_app
from trainer.errors import UsageError
from trainer.rank_env import clean_environment
from trainer.slurm_env import adopt_ranks

if __name__ == "__main__":
    clean_environment()
    try:
        adopt_ranks()
    except UsageError as error:
        print(f"rankzero: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(run_app(app))
