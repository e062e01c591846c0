"""minibit: 1.58-bit deep learning in plain NumPy."""

from __future__ import annotations

__version__ = "0.1.0"
