"""Import from `launch.supervise.forked_ranks` instead."""

from launch.supervise.forked_ranks import TIMEOUT, Ended, Hook, Ranks
from trainer.rank_env import RANK_VARIABLES as LAUNCHER

__all__ = ["LAUNCHER", "TIMEOUT", "Ended", "Hook", "Ranks"]
