"""minibit: 1.58-bit deep learning in plain NumPy.

``import minibit as mb`` offers what every room lists in its ``__all__``. Numba, plots and the
command line are imported only where they are first used.
"""

from __future__ import annotations

from minibit import layers, noise, ternary
from minibit.layers import *
from minibit.noise import *
from minibit.ternary import *

__all__ = ["__version__"]
__all__ += ternary.__all__
__all__ += layers.__all__
__all__ += noise.__all__

__version__ = "0.1.0"
