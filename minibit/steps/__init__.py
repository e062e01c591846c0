"""A model is its steps: log, replay, history, edits."""

from minibit.steps.asking import Change as Change
from minibit.steps.asking import Verdict as Verdict
from minibit.steps.asking import changes as changes
from minibit.steps.bounds import MOST_WEIGHTS as MOST_WEIGHTS
from minibit.steps.bounds import checked_plan as checked_plan
from minibit.steps.bounds import draws as draws
from minibit.steps.codes import pack_steps as pack_steps
from minibit.steps.codes import unpack_steps as unpack_steps
from minibit.steps.edits import checked_segments as checked_segments
from minibit.steps.file import MAGIC as MAGIC
from minibit.steps.file import LogError as LogError
from minibit.steps.forks import seed_at as seed_at
from minibit.steps.log import StepLog as StepLog
from minibit.steps.log import compact as compact
from minibit.steps.net_moves import expand as expand

__all__ = [
    "LogError",
    "StepLog",
    "compact",
    "expand",
]
