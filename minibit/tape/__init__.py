"""Reverse mode out of forward mode: record the tangent program of a JVP, then transpose it."""

from minibit.tape.adam import Adam as Adam
from minibit.tape.adam import FloatArray as FloatArray
from minibit.tape.adam import adam_move as adam_move
from minibit.tape.adam import clip_by_global_norm as clip_by_global_norm
from minibit.tape.adam import global_norm as global_norm
from minibit.tape.adam import two_stage as two_stage
from minibit.tape.adam import two_stage_weight_decay as two_stage_weight_decay
from minibit.tape.recorder import Recorder as Recorder
from minibit.tape.reverse import Pullback as Pullback
from minibit.tape.reverse import grad as grad
from minibit.tape.reverse import value_and_grad as value_and_grad
from minibit.tape.reverse import vjp as vjp

__all__ = [
    "Adam",
    "Pullback",
    "clip_by_global_norm",
    "global_norm",
    "grad",
    "two_stage",
    "two_stage_weight_decay",
    "value_and_grad",
    "vjp",
]
