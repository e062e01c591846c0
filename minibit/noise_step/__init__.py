"""Training in ternary without backpropagation (noise_step, Brickner 2024)."""

from minibit.noise_step.alignments import direction_sums_by_jvp as direction_sums_by_jvp
from minibit.noise_step.alignments import unit_sums_by_jvp as unit_sums_by_jvp
from minibit.noise_step.methods import Objective as Objective
from minibit.noise_step.methods import Sampled as Sampled
from minibit.noise_step.methods import Units as Units
from minibit.noise_step.methods import geometric as geometric
from minibit.noise_step.methods import keep_moves as keep_moves
from minibit.noise_step.methods import keep_terns as keep_terns
from minibit.noise_step.methods import t_score as t_score
from minibit.noise_step.moves import Candidates as Candidates
from minibit.noise_step.moves import Directions as Directions
from minibit.noise_step.moves import Params as Params
from minibit.noise_step.moves import Plan as Plan
from minibit.noise_step.moves import SampledStep as SampledStep
from minibit.noise_step.moves import UnitsStep as UnitsStep
from minibit.noise_step.moves import Update as Update
from minibit.noise_step.moves import apply_update as apply_update
from minibit.noise_step.moves import digest as digest
from minibit.noise_step.moves import draw_candidates as draw_candidates
from minibit.noise_step.moves import initial_params as initial_params
from minibit.noise_step.moves import sparse_update as sparse_update
from minibit.noise_step.perceptron import MLP as MLP
from minibit.noise_step.step import NoiseStep as NoiseStep
from minibit.noise_step.step import StepResult as StepResult
from minibit.noise_step.unit_reference import ChunkSums as ChunkSums
from minibit.noise_step.unit_reference import Sums as Sums
from minibit.noise_step.unit_tangents import CHUNKS as CHUNKS
from minibit.noise_step.unit_tangents import added as added
from minibit.noise_step.unit_tangents import chunk_edges as chunk_edges
from minibit.noise_step.unit_tangents import forward as forward
from minibit.noise_step.unit_tangents import loss_sums as loss_sums
from minibit.noise_step.unit_tangents import mean_loss as mean_loss

__all__ = [
    "MLP",
    "NoiseStep",
    "Plan",
    "Sampled",
    "SampledStep",
    "StepResult",
    "Units",
    "UnitsStep",
    "apply_update",
    "digest",
    "direction_sums_by_jvp",
    "geometric",
    "initial_params",
    "keep_moves",
    "keep_terns",
    "sparse_update",
    "unit_sums_by_jvp",
]
