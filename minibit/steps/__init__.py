"""A model is its steps: log, replay, history, edits."""

from minibit.steps.file import MAGIC as MAGIC
from minibit.steps.file import LogError as LogError
from minibit.steps.log import StepLog as StepLog
from minibit.steps.log import compact as compact
from minibit.steps.net_moves import expand as expand
from minibit.steps.replaying import MOST_WEIGHTS as MOST_WEIGHTS
from minibit.steps.replaying import draws as draws

__all__ = [
    "LogError",
    "StepLog",
    "compact",
    "expand",
]
