"""``minibit experiment nf4``: what four bits a weight cost, on normal weights and trained models.

Float language models of three sizes are trained, once a seed, and their projections rounded to each
codebook afterwards, in blocks of 64; embeddings and norms stay as they are. What counts is the loss
on the held-out text, before and after: the nats a character that rounding adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.experiments.runs import dense_model, folder_of_runs
from minibit.language import SIZES, TrainedModel, evaluate_loss, shipped_text
from minibit.language import train_language as train
from minibit.nf4 import E2M1_CODE, E3M0_CODE, INT4_CODE, NF4_CODE, codebook_quantize, quantize_nf4

__all__ = ["CODEBOOKS", "PEER_FP4", "nf4", "normal_errors", "rounded"]

Array = NDArray[np.float32]
Params = Mapping[str, Array]

_PEER = np.array([0.0625, 2, 3, 4, 6, 8, 12], np.float32) / np.float32(12)
PEER_FP4 = np.concatenate([-_PEER[::-1], np.zeros(1, np.float32), _PEER])
"""The FP4 of bitsandbytes: E2M1 but for its smallest number, 1/192 of the largest, not 1/12."""

CODEBOOKS: dict[str, Callable[[Array], Array]] = {
    "NF4": lambda w: codebook_quantize(w, NF4_CODE),
    "NF4, double": lambda w: quantize_nf4(w, 64, double_quant=True).dequantize(),
    "E2M1": lambda w: codebook_quantize(w, E2M1_CODE),
    "FP4 of bitsandbytes": lambda w: codebook_quantize(w, PEER_FP4),
    "Int4": lambda w: codebook_quantize(w, INT4_CODE),
    "E3M0": lambda w: codebook_quantize(w, E3M0_CODE),
}
"""Name to rounding, in blocks of 64."""

CUTS = (16, 32, 48)  # further places at which the first block may start
COMPARED = ("NF4", "E2M1", "Int4")


def rounded(params: Params, rounding: Callable[[Array], Array]) -> dict[str, Array]:
    """Round the projections of a model; all else stays.

    Parameters
    ----------
    params : mapping of float32 arrays
        Projections are those whose names end with ``_proj``.
    rounding : callable
        One of `CODEBOOKS`.
    """
    return {name: rounding(w) if name.endswith("_proj") else w for name, w in params.items()}


def cut_at(start: int, rounding: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Let blocks start at another weight: the same codebook, and other roundings.

    How much loss is added depends on which weights happen to share an absmax. Averages over
    several cuts tell codebooks apart that single ones do not.
    """

    def moved(w: Array) -> Array:
        held = rounding(np.roll(w.reshape(-1), -start))
        return np.roll(held, start).reshape(w.shape)

    return moved


def relative_error(params: Params, rounding: Callable[[Array], Array]) -> float:
    """Norm of what rounding changes, over the norm of the weights, all projections together."""
    weights = [w for name, w in params.items() if name.endswith("_proj")]
    lost = sum(float(np.sum((rounding(w) - w) ** 2, dtype=np.float64)) for w in weights)
    return float(np.sqrt(lost / sum(float(np.sum(w**2, dtype=np.float64)) for w in weights)))


def normal_errors(seed: int) -> dict[str, float]:
    """Relative error of 512 by 512 normal weights, for every codebook."""
    w = np.random.default_rng(seed).standard_normal((512, 512)).astype(np.float32)
    return {name: relative_error({"w_proj": w}, way) for name, way in CODEBOOKS.items()}


def nf4(
    seeds: Sequence[int], say: Callable[[str], None], folder: str | Path | None = None
) -> list[dict[str, Any]]:
    """Train float models of every size, round them, and measure what it adds to the loss.

    Parameters
    ----------
    seeds : sequence of int
    say : callable
        Gets a line after every model.
    folder : path, optional
        Has the trained models, ``SIZE_float_SEED.npz``, as ``minibit experiment language`` keeps
        them; those that are missing are trained and kept there. By default a scratch folder.

    Returns
    -------
    list of dict
        A row of kind ``normal`` a seed, of kind ``model`` a model, and of kind ``size`` a size,
        with means and standard deviations over the seeds, and over seeds and cuts.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "normal", "seed": seed, "relative_error": normal_errors(seed)} for seed in seeds
    ]
    _, _, validation = shipped_text()
    with folder_of_runs(folder) as place:
        for size in SIZES:
            models = []
            for seed in seeds:
                trained = dense_model(size, "float", seed, place, train)
                models.append(_model_row(size, seed, trained, validation))
                added = models[-1]["added"]
                say(f"{size}, seed {seed}: " + ", ".join(f"{k} {v:+.4f}" for k, v in added.items()))
            rows += [*models, _size_row(size, models)]
    return rows


def _model_row(size: str, seed: int, trained: TrainedModel, validation: Any) -> dict[str, Any]:
    """Losses of one model, as it is and rounded in every way."""
    params = trained.params

    def loss(held: Params) -> float:
        return evaluate_loss(trained.config, held, validation, linear=trained.linear)

    before = loss(params)
    after = {name: loss(rounded(params, way)) for name, way in CODEBOOKS.items()}
    cuts = {
        name: [after[name] - before]
        + [loss(rounded(params, cut_at(start, CODEBOOKS[name]))) - before for start in CUTS]
        for name in COMPARED
    }
    return {
        "kind": "model",
        "size": size,
        "seed": seed,
        "loss": before,
        "added": {name: value - before for name, value in after.items()},
        "added_by_cut": cuts,
        "relative_error": {name: relative_error(params, way) for name, way in CODEBOOKS.items()},
    }


def _size_row(size: str, models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and spreads of one size."""
    row: dict[str, Any] = {
        "kind": "size",
        "size": size,
        "loss": float(np.mean([model["loss"] for model in models])),
    }
    for what in ("added", "relative_error"):
        values = {name: [model[what][name] for model in models] for name in CODEBOOKS}
        row[what] = {name: float(np.mean(found)) for name, found in values.items()}
        row[f"{what}_std"] = {
            name: float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
            for name, found in values.items()
        }
    row["cuts"] = {  # differences within a model and a cut: their mean and its standard error
        f"{other} - {name}": _mean_and_error(models, name, other)
        for name, other in pairwise(COMPARED)
    }
    return row


def _mean_and_error(models: Sequence[Mapping[str, Any]], name: str, other: str) -> list[float]:
    """How much more another codebook adds, over all models and cuts."""
    found = np.concatenate(
        [np.subtract(model["added_by_cut"][other], model["added_by_cut"][name]) for model in models]
    )
    return [float(found.mean()), float(found.std(ddof=1) / np.sqrt(found.size))]
