"""Forward-mode automatic differentiation with dual numbers, on NumPy's own protocols."""

from minibit.dual.array import Dual as Dual
from minibit.dual.array import floating as floating
from minibit.dual.entries import value_of as value_of
from minibit.dual.forward import custom_jvp as custom_jvp
from minibit.dual.forward import derivative as derivative
from minibit.dual.forward import forward_gradient as forward_gradient
from minibit.dual.forward import jacfwd as jacfwd
from minibit.dual.forward import jvp as jvp
from minibit.dual.forward import jvp_batch as jvp_batch
from minibit.dual.forward import stop_gradient as stop_gradient
from minibit.dual.forward import straight_through as straight_through
from minibit.dual.tangents import ZERO as ZERO
from minibit.dual.tangents import Array as Array
from minibit.dual.tangents import NoRuleError as NoRuleError
from minibit.dual.tangents import Tangent as Tangent
from minibit.dual.tangents import as_array as as_array
from minibit.dual.trees import Tree as Tree
from minibit.dual.trees import leaves as leaves
from minibit.dual.trees import map_tree as map_tree
from minibit.dual.trees import zip_trees as zip_trees

__all__ = [
    "Dual",
    "NoRuleError",
    "custom_jvp",
    "derivative",
    "forward_gradient",
    "jacfwd",
    "jvp",
    "jvp_batch",
    "stop_gradient",
    "straight_through",
]
