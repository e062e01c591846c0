"""minibit: 1.58-bit deep learning in plain NumPy.

``import minibit as mb`` offers what every room lists in its ``__all__``, and the data and training
loops. Numba, plots and the command line are imported only where they are first used.
"""

from __future__ import annotations

from minibit import (
    absmean,
    datasets,
    dual,
    layers,
    matmul,
    noise,
    noise_step,
    steps,
    ternary,
    training,
)
from minibit.absmean import *
from minibit.datasets import *
from minibit.dual import *
from minibit.layers import *
from minibit.matmul import *
from minibit.noise import *
from minibit.noise_step import *
from minibit.steps import *
from minibit.ternary import *
from minibit.training import *

__all__ = ["__version__"]
__all__ += dual.__all__
__all__ += ternary.__all__
__all__ += matmul.__all__
__all__ += absmean.__all__
__all__ += layers.__all__
__all__ += noise.__all__
__all__ += noise_step.__all__
__all__ += steps.__all__
__all__ += datasets.__all__
__all__ += training.__all__

__version__ = "0.1.0"
