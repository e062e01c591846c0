"""Sparse ternary noise, initial weights and candidate draws that every language reproduces."""

from minibit.noise.density import noise_constants as noise_constants
from minibit.noise.philox import ADAPTERS as ADAPTERS
from minibit.noise.philox import BATCH as BATCH
from minibit.noise.philox import DROPOUT as DROPOUT
from minibit.noise.philox import INITIAL as INITIAL
from minibit.noise.philox import LEVELS as LEVELS
from minibit.noise.philox import TOKENS as TOKENS
from minibit.noise.philox import USER as USER
from minibit.noise.philox import integers as integers
from minibit.noise.philox import philox4x32 as philox4x32
from minibit.noise.philox import uniform as uniform
from minibit.noise.philox import words as words
from minibit.noise.sparse import initial_codes as initial_codes
from minibit.noise.sparse import sparse_noise as sparse_noise
from minibit.noise.sparse import sparse_noise_many as sparse_noise_many
from minibit.noise.subsets import draw_inputs as draw_inputs
from minibit.noise.subsets import draw_units as draw_units
from minibit.noise.subsets import inputs_of_units as inputs_of_units
from minibit.noise.subsets import units_of_layers as units_of_layers

__all__ = [
    "draw_inputs",
    "draw_units",
    "initial_codes",
    "integers",
    "noise_constants",
    "philox4x32",
    "sparse_noise",
    "sparse_noise_many",
    "uniform",
    "words",
]
