"""Training in ternary without backpropagation (noise_step, Brickner 2024).

A step proposes sparse ternary changes of the weights, measures along each of them how the loss
would change (its *alignment* with the gradient, by one forward tangent), keeps the best, and
forgets everything else: no latent weights, no gradient or momentum memory, no backward pass. A
step keeps integers alone, so a model is its seed and its steps.

The two methods, `Sampled` and `Units`, are in `minibit.noise_step.methods`; `NoiseStep` holds the
weights and the number of the step, and touches no file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, number, thread_count
from minibit.kernels.threads import cpus
from minibit.noise_step.alignments import Loss, Model
from minibit.noise_step.methods import Objective, Sampled, Shapes, Units
from minibit.noise_step.moves import (
    Params,
    SampledStep,
    UnitsStep,
    Update,
    apply_update,
    initial_params,
    sparse_update,
)
from minibit.noise_step.perceptron import MLP
from minibit.noise_step.unit_tangents import mean_loss

__all__ = ["NoiseStep", "StepResult"]

METHODS: dict[str, type[Sampled | Units]] = {"sampled": Sampled, "units": Units}


@dataclass(frozen=True)
class StepResult:
    """The outcome of one step. Only its choice, `record`, is needed to replay it."""

    step: int
    record: SampledStep | UnitsStep  # the choice: what a record of the log has of the step
    update: Update  # what the choice does to the weights
    loss: float  # mean over the batch, samples weighted, before the step
    accuracy: float  # of the batch, unweighted, before the step
    hardness: NDArray[np.floating[Any]]  # (batch,), 1 - p_y
    alignments: tuple[NDArray[Any], ...]  # sum w_b a_b of `Sums`, divided by the batch size
    scores: tuple[NDArray[Any], ...]  # what was ranked


class NoiseStep:
    """Train a pure function of ternary parameters forwards only.

    Parameters
    ----------
    model : callable (params, x) -> outputs
        Pure. An `MLP` takes the fast path; any other function goes through `jvp_batch`. For method
        ``units``, if the model has an argument ``linear`` and makes its products with it, one
        tangent per unit is enough; else it takes one per weight.
    params : dict of int8 arrays
        The weights to start from, codes in {-1, 0, 1}; copied. ``units`` needs ``(n_out, n_in)``.
    seed : int
        Names all draws, with the step number.
    method : Sampled, Units, "sampled" or "units"
        The method with its settings; a name alone means its default settings.
    threshold : float
        Samples with ``1 - p_y <= threshold`` count as learnt and get no tangents; by default none
        does. With a custom loss, p_y is ``exp(-loss)``.
    loss : callable (outputs, y) -> (batch,), optional
        Per-sample negative log-likelihood; cross entropy by default.
    zeros : float
        Share of zeros with which `params` were drawn (`initial_params`); only goes into `plan`.
    threads : int, optional
        Of the fast path; as many as there are cores by default. The sums do not depend on it.
        ``workers``, its name before, is deprecated.
    **settings
        Settings of a method that is given by its name: ``NoiseStep(..., "units", rate=0.01)``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or a parameter is not ternary; the message names it.

    Notes
    -----
    Brickner, "Training in 1.58b With No Gradient Memory" (2024), leaves open what happens at ties,
    zero alignments and empty perturbations: see `keep_terns`. Alignments are floats and depend on
    the machine in their last bits; codes are decided once, here, and then logged.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        seed: int,
        method: Sampled | Units | Literal["sampled", "units"] = "sampled",
        *,
        threshold: float = -np.inf,
        loss: Loss | None = None,
        zeros: float = 0.0,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        if "workers" in settings:
            warnings.warn("workers is now called threads", DeprecationWarning, stacklevel=2)
            threads = settings.pop("workers")
        self.method = _method(method, settings)
        seed, zeros = integer("seed", seed, 0, 2**64 - 1), number("zeros", zeros, "[0, 1]")
        if not threshold < 1:
            raise ValueError(f"threshold must be below 1, where 1 - p_y ends, got {threshold}")
        threads = thread_count(threads) or cpus()
        if not isinstance(params, Mapping) or not params:
            raise TypeError(
                f"params must be a non-empty dict of arrays, got {type(params).__name__}"
            )
        self.params = {name: _ternary(name, w) for name, w in params.items()}
        if isinstance(model, MLP):
            model.check(self.params)
        self.objective = Objective(model, loss, threshold, threads)
        shapes = {name: w.shape for name, w in self.params.items()}
        self.plan = self.method.plan(shapes, int(seed), round(zeros * 2**32))
        self.steps = 0

    @classmethod
    def start(
        cls,
        model: Model,
        shapes: Shapes,
        seed: int,
        method: Sampled | Units | Literal["sampled", "units"] = "sampled",
        *,
        zeros: float = 1 / 3,
        **options: Any,
    ) -> Self:
        """Begin a run at the weights that its seed draws.

        `shapes` are those of the parameters, by name, and `zeros` the share of zeros in them; the
        rest is as for the class.
        """
        empty = {name: np.zeros(shape, np.int8) for name, shape in shapes.items()}
        run = cls(model, empty, seed, method, zeros=zeros, **options)
        run.params = initial_params(run.plan)
        return run

    def step(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        weight: NDArray[Any] | None = None,
        density: float | None = None,
    ) -> StepResult:
        """Take one step on a batch; updates `params` and `steps`.

        `x` (batch, ...) is what the model takes, `y` (batch, ...) what the loss takes: integer
        labels for cross entropy. `weight` (batch,) are the samples' weights, all 1 by default.
        `density`, of method ``sampled``, overrides the schedule for this step (the paper lowers it
        when the loss falls).

        Raises
        ------
        TypeError, ValueError
            If an argument is malformed or a loss is not finite; nothing is updated then.
        """
        x, y, weight = _batch(x, y, weight)
        method: Any = self.method
        plan, params, number = self.plan, self.params, self.steps
        drawn = method.propose(plan, number, density)
        sums = method.measure(self.objective, params, (x, y, weight), drawn)
        if not np.isfinite(sums.loss).all():
            sample = int(np.flatnonzero(~np.isfinite(sums.loss))[0])
            raise ValueError(f"losses must be finite, got {sums.loss[sample]} for sample {sample}")
        choice, scores = method.keep(plan, number, params, drawn, sums)
        update = sparse_update(plan, number, choice, drawn)
        self.params = apply_update(params, *update)
        self.steps += 1
        return StepResult(
            step=number,
            record=choice,
            update=update,
            loss=mean_loss(sums.loss, weight),
            accuracy=float(sums.correct.mean()),
            hardness=sums.hardness,
            alignments=tuple(a / len(y) for a in sums.alignments),
            scores=scores,
        )


def _method(method: Any, settings: dict[str, Any]) -> Sampled | Units:
    """Return a method's settings, from themselves or from its name."""
    if isinstance(method, Sampled | Units):
        if settings:
            raise TypeError(f"settings belong into {method!r}, got {', '.join(settings)} beside it")
        return method
    if method not in METHODS:
        raise ValueError(
            f"method must be Sampled(...), Units(...), 'sampled' or 'units', got {method!r}"
        )
    known = [field.name for field in fields(METHODS[method])]
    if unknown := [name for name in settings if name not in known]:
        raise TypeError(f"method {method!r} has the settings {', '.join(known)}, got {unknown[0]}")
    return METHODS[method](**settings)


def _batch(x: Any, y: Any, weight: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Return the arrays of a batch, checked as far as every model and loss needs it."""
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y) or not len(y):
        raise ValueError(f"x and y must hold one entry per sample, got {x.shape} and {y.shape}")
    weight = np.ones(len(y), np.float32) if weight is None else np.asarray(weight, np.float32)
    if weight.shape != (len(y),) or not np.isfinite(weight).all() or not (weight >= 0).all():
        raise ValueError(f"weight must be ({len(y)},), finite and not negative")
    return x, y, weight


def _ternary(name: str, w: Any) -> NDArray[np.int8]:
    """Return a private int8 copy of a parameter, checked."""
    w = np.asarray(w)
    if w.dtype != np.int8:
        raise TypeError(f"params[{name!r}] must be int8 codes, got {w.dtype}")
    outside = (w < -1) | (w > 1)
    if outside.any():
        raise ValueError(f"params[{name!r}] must hold -1, 0 and 1, got {w[outside][0]}")
    return np.array(w, order="C")
