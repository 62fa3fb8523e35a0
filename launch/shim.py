"""Import from `launch.supervise` instead."""

from launch.supervise.exit_codes import ERROR_CODES, PREEMPTED
from launch.supervise.signals import FORWARDED as PASSED_ON
from launch.supervise.signals import PARENT, end_with_parent

__all__ = ["ERROR_CODES", "PARENT", "PASSED_ON", "PREEMPTED", "end_with_parent"]
