"""``minibit experiment nf4``: what four bits per weight cost, on normal weights and trained models.

Float language models are trained, and their projections rounded to each codebook afterwards, in
blocks of 64. The measure is the nats per character that rounding adds on the held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minibit.experiments.runs import Row, Runs, dense_model, mean_and_std
from minibit.language import SIZES, evaluate_loss, shipped_text
from minibit.nf4 import E2M1_CODE, E3M0_CODE, INT4_CODE, NF4_CODE, codebook_quantize, quantize_nf4

__all__ = ["CODEBOOKS", "PEER_FP4", "nf4", "normal_errors", "rounded"]

Array = NDArray[np.float32]
Params = Mapping[str, Array]
Rounding = Callable[[Array], Array]

_PEER = np.array([0.0625, 2, 3, 4, 6, 8, 12], np.float32) / np.float32(12)
PEER_FP4 = np.concatenate([-_PEER[::-1], np.zeros(1, np.float32), _PEER])
"""The FP4 of bitsandbytes: E2M1 but for its smallest number, 1/192 of the largest, not 1/12."""

CODEBOOKS: dict[str, Rounding] = {
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


def rounded(params: Params, rounding: Rounding) -> dict[str, Array]:
    """Round the projections of a model (``*_proj``); all else stays."""
    return {name: rounding(w) if name.endswith("_proj") else w for name, w in params.items()}


def cut_at(start: int, rounding: Rounding) -> Rounding:
    """Let blocks start at another weight: the same codebook, and other roundings.

    Which weights share an absmax decides how much loss is added: averages over several cuts tell
    codebooks apart that single ones do not.
    """
    return lambda w: np.roll(rounding(np.roll(w.reshape(-1), -start)), start).reshape(w.shape)


def relative_error(params: Params, rounding: Rounding) -> float:
    """Norm of what rounding changes, over the norm of the weights, all projections together."""
    weights = [w for name, w in params.items() if name.endswith("_proj")]
    lost = sum(float(np.sum((rounding(w) - w) ** 2, dtype=np.float64)) for w in weights)
    return float(np.sqrt(lost / sum(float(np.sum(w**2, dtype=np.float64)) for w in weights)))


def normal_errors(seed: int) -> dict[str, float]:
    """Relative error of 512 by 512 normal weights, for every codebook."""
    w = np.random.default_rng(seed).standard_normal((512, 512)).astype(np.float32)
    return {name: relative_error({"w_proj": w}, way) for name, way in CODEBOOKS.items()}


def nf4(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Train float models of every size, round them, and measure what rounding adds to the loss.

    Rows are of kind ``normal`` per seed, ``model`` per model, and ``size`` per size: means and
    standard deviations over the seeds, and over seeds and cuts.
    """
    rows: list[Row] = [
        {"kind": "normal", "seed": seed, "relative_error": normal_errors(seed)} for seed in seeds
    ]
    line = "{size}, seed {seed}: NF4 {added[NF4]:+.4f}, Int4 {added[Int4]:+.4f}"
    for size in SIZES:
        settings = [{"size": size, "seed": seed} for seed in seeds]
        models = runs.rows(one_run, settings, line, here=True)
        rows += [*models, _size_row(size, models)]
    return rows


def one_run(folder: Path, size: str, seed: int) -> Row:
    """Losses of one model, as it is and rounded in every way."""
    trained = dense_model(folder, size, "float", seed)
    params, validation = trained.params, shipped_text()[2]

    def loss(params: Params) -> float:
        return evaluate_loss(trained.config, params, validation, linear=trained.linear)

    before = loss(params)
    added = {name: loss(rounded(params, way)) - before for name, way in CODEBOOKS.items()}
    cuts = {name: [added[name]] for name in COMPARED}
    for name, start in product(COMPARED, CUTS):
        cuts[name].append(loss(rounded(params, cut_at(start, CODEBOOKS[name]))) - before)
    return {
        **{"kind": "model", "size": size, "seed": seed, "loss": before},
        "added": added,
        "added_by_cut": cuts,
        "relative_error": {name: relative_error(params, way) for name, way in CODEBOOKS.items()},
    }


def _size_row(size: str, models: Sequence[Row]) -> Row:
    """Means and spreads of one size."""
    row: Row = {"kind": "size", "size": size, "loss": mean_and_std(models, "loss")["loss"]}
    for field in ("added", "relative_error"):
        for name in CODEBOOKS:
            summary = mean_and_std([model[field] for model in models], name)
            row.setdefault(field, {})[name] = summary[name]
            row.setdefault(f"{field}_std", {})[name] = summary[f"{name}_std"]
    row["cuts"] = {}
    for name, other in pairwise(COMPARED):  # within a model and a cut: mean and standard error
        pairs = [(m["added_by_cut"][other], m["added_by_cut"][name]) for m in models]
        more = np.concatenate([np.subtract(*pair) for pair in pairs])
        error = more.std(ddof=1) / np.sqrt(more.size)
        row["cuts"][f"{other} - {name}"] = [float(more.mean()), float(error)]
    return row
