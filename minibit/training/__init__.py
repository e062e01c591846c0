"""Training runs: the loop that ties noise_step to a log."""

from minibit.training.course import Course as Course
from minibit.training.log_header import MNIST_MEAN as MNIST_MEAN
from minibit.training.log_header import MNIST_STD as MNIST_STD
from minibit.training.log_header import model_of as model_of
from minibit.training.log_header import other_data as other_data
from minibit.training.log_header import training_header as training_header
from minibit.training.loop import Progress as Progress
from minibit.training.loop import TrainResult as TrainResult
from minibit.training.loop import evaluate as evaluate
from minibit.training.loop import train as train
from minibit.training.presets import PRESETS as PRESETS
from minibit.training.presets import SHIFTS as SHIFTS
from minibit.training.presets import Preset as Preset
from minibit.training.shipped import shipped_log as shipped_log

__all__ = ["PRESETS", "Preset", "Progress", "TrainResult", "evaluate", "shipped_log", "train"]
