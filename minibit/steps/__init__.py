"""A model is its steps: log, replay, history, edits."""

from minibit.steps.file import MAGIC as MAGIC
from minibit.steps.file import LogError as LogError
from minibit.steps.log import StepLog as StepLog
from minibit.steps.log import compact as compact
from minibit.steps.net_moves import expand as expand

__all__ = [
    "LogError",
    "StepLog",
    "compact",
    "expand",
]
