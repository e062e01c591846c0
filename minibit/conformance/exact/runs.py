"""Steps, batches and runs of noise_step worked another way; `wrong` names one mistake.

Derivatives are complex steps, ``Im L(w + i h v) / h``, exact to the last bits of float64; draws are
those of `exact/noise.py`, decisions come from sorted lists. No case may lie so near to a kink, a
tie or a threshold that float32 could decide it in another way: `clear` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from math import prod
from statistics import median
from typing import Any

import numpy as np

from minibit.conformance.exact.histories import History
from minibit.conformance.exact.noise import INPUTS, UNITS, Noise

__all__ = ["RUNS", "WRONG"]

H = 1e-30
BATCH, LEVELS = 2, 6  # domains
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # down, right


class Runs:
    """A step and what it is made of."""

    noise = Noise()

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def clear(self, distances: Any, least: float = 1e-3) -> None:
        """Refuse a case in which something lies within `least` of where a decision turns."""
        if not self.wrong and np.min(np.abs(distances), initial=np.inf) < least:
            raise ValueError("this case is too near to a decision that rounding may turn")

    # --- The model and its derivatives

    def logits(self, layers: list[Any], model: Any, x: Any) -> Any:
        """Run the MLP on complex weights, whose imaginary part is h times a direction."""
        wrong, eps = self.wrong, model.get("eps", 1e-5)
        scale, offset = model.get("input_scale", 1.0), model.get("input_offset", 0.0)
        out = scale * np.asarray(x, float) + offset  # (batch, n_in)
        if wrong == "offset-first":
            out = scale * (np.asarray(x, float) + offset)
        if wrong == "eps-of-1e-6":
            eps = 1e-6
        *hidden, last = layers
        for number, w in enumerate(hidden):
            z = out @ w.T
            centred = z - z.mean(axis=1, keepdims=True)
            variance = (centred * centred).mean(axis=1, keepdims=True)
            ends = len(hidden) - (wrong != "last-hidden-rounded")
            rounds = model.get("activations", "float") == "int8" and number < ends
            deep = wrong == "through-the-deviation"
            root = np.sqrt((variance.real if rounds and not deep else variance) + eps)
            z_hat = centred / root
            self.clear(z_hat.real)
            out = np.where(z_hat.real > 0, z_hat, 0)
            if rounds:  # codes hand on; the tangent goes straight through codes above 0
                out = self.rounded(z_hat)
        if not hidden and wrong == "norm-before-the-logits":
            out = (out - out.mean(axis=1, keepdims=True)) / out.std(axis=1, keepdims=True)
        return model.get("logit_scale", 1.0) * out @ last.T

    def rounded(self, z_hat: Any) -> Any:
        """Round what layer norm returns to int8 by the absmax of the token, then relu."""
        source = np.maximum(z_hat.real, 0) if self.wrong == "rounded-after-relu" else z_hat.real
        axis = None if self.wrong == "one-scale" else 1
        absmax = np.abs(source).max(axis=axis, keepdims=True)
        scaled = 127 * z_hat.real / absmax
        self.clear(scaled - np.floor(scaled) - 0.5)
        codes = np.maximum(np.rint(scaled), 0)
        if self.wrong == "rounded-up":
            codes = np.maximum(np.ceil(scaled), 0)
        on = z_hat.real > 0 if self.wrong == "mask-of-floats" else codes > 0
        return codes * absmax / 127 + 1j * np.where(on, z_hat.imag, 0)

    def sums(
        self,
        params: Any,
        model: Any,
        batch: tuple[Any, Any, Any],
        threshold: float,
        directions: list[dict[int, int]],
    ) -> tuple[Any, ...]:
        """Losses, 1 - p_y, correctness, and of each direction sum w t and sum (w t)^2."""
        x, y, weight = batch
        shapes = [w.shape for w in params.values()]
        weights = np.concatenate([w.ravel() for w in params.values()]).astype(float)

        def losses(imaginary: Any) -> tuple[Any, Any]:
            """Cross entropies at weights with an imaginary part, and logits."""
            flat, layers, at = weights + 1j * imaginary, [], 0
            for shape in shapes:
                layers.append(flat[at : at + prod(shape)].reshape(shape))
                at += prod(shape)
            logits = self.logits(layers, model, x)
            shifted = logits - logits.real.max(axis=1, keepdims=True)
            chosen = shifted[np.arange(len(y)), y]
            return np.log(np.exp(shifted).sum(axis=1)) - chosen, logits.real

        loss, logits = losses(np.zeros(len(weights)))
        hardness = 1 - np.exp(-loss.real)
        self.clear(hardness - threshold)
        counts = (hardness > threshold) | (self.wrong == "learnt-samples-count")
        counted = np.where(counts, weight, 0)
        if self.wrong == "weights-left-out":
            counted = np.where(counts, 1, 0)
        alignments, squares = [], []
        for direction in directions:
            v = np.zeros(len(weights))
            v[list(direction)] = list(direction.values())
            slopes = losses(H * v)[0].imag / H  # (batch,)
            alignments.append(float((counted * slopes).sum()))
            inside = slopes if self.wrong == "weights-outside-the-squares" else counted * slopes
            outside = counted if self.wrong == "weights-outside-the-squares" else 1
            squares.append(float((outside * inside**2).sum()))
        if self.wrong == "along-the-gradient":
            alignments = [-a for a in alignments]
        return loss.real, hardness, logits.argmax(axis=1) == y, alignments, squares

    def scores(self, a: list[float], squares: list[float]) -> list[float]:
        """|sum a| / sqrt(sum a^2); 0 where no sample has a tangent."""
        return [abs(v) / s**0.5 if s else 0.0 for v, s in zip(a, squares, strict=True)]

    # --- One step

    def sampled(self, params: Any, model: Any, batch: Any, seed: int, step: int, o: Any) -> Any:
        """Codes where |a| or t reaches the median; w - sum c v, clamped once."""
        size = sum(w.size for w in params.values())
        numerator = self.noise.numerator(o["density"])
        drawn = [
            self.noise.sparse_noise(seed, step, p, size, numerator)
            for p in range(o["perturbations"])
        ]
        directions = [dict(zip(p.tolist(), s.tolist(), strict=True)) for p, s in drawn]
        loss, hardness, correct, a, squares = self.sums(
            params, model, batch, o["threshold"], directions
        )
        t = o["score"] == "t" and self.wrong != "ranked-by-size"
        scores = self.scores(a, squares) if t else [abs(v) for v in a]
        middle = median(scores)
        if self.wrong == "lower-median":
            middle = sorted(scores)[(len(scores) - 1) // 2]
        self.clear([s - middle for s in scores if s != middle], 1e-4 * max(scores, default=0))
        above = self.wrong == "above-the-median-only"
        codes = [
            int(np.sign(v)) if s > middle or (s == middle and not above) else 0
            for v, s in zip(a, scores, strict=True)
        ]
        if self.wrong == "sign-of-zero":
            codes = [c or int(v == 0) for c, v in zip(codes, a, strict=True)]
        after = np.concatenate([w.ravel() for w in params.values()]).astype(int)
        for code, direction in zip(codes, directions, strict=True):
            for position, sign in direction.items():
                after[position] -= code * sign
            if self.wrong == "each-perturbation-clamped":
                after = np.clip(after, -1, 1)
        choice = {"numerator": numerator, "codes": np.array(codes, np.int8)}
        return loss, hardness, correct, [np.array(a)], [np.array(scores)], choice, after

    def units(self, params: Any, model: Any, batch: Any, seed: int, step: int, o: Any) -> Any:
        """Keep the best floor(rate N + u) legal moves of each layer, against their alignments."""
        shapes = [w.shape for w in params.values()]
        before = np.concatenate([w.ravel() for w in params.values()]).astype(int)
        after, start, quotas = before.copy(), 0, self.quotas(shapes, seed, step, o)
        aligned, scored, positions, signs = [], [], [], []
        for layer, (n_out, n_in) in enumerate(shapes):
            units, columns = self.candidates(shapes[layer], seed, step, layer, o)
            width = len(columns[0])
            every = [start + u * n_in + c for u in units for c in range(n_in)]
            loss, hardness, correct, a, squares = self.sums(
                params, model, batch, o["threshold"], [{p: 1} for p in every]
            )
            aligned.append(np.array(a).reshape(len(units), n_in))
            taken = [i * n_in + c for i, row in enumerate(columns) for c in row]
            a, squares = [a[i] for i in taken], [squares[i] for i in taken]
            at = [every[i] for i in taken]
            scores = self.scores(a, squares)
            scored.append(np.array(scores).reshape(len(units), width))
            turn = [-1 if v > 0 else 1 for v in a]
            free = self.wrong == "illegal-moves-kept"
            legal = [
                q for q, p in enumerate(at) if scores[q] and (free or abs(before[p] + turn[q]) <= 1)
            ]
            ranked = sorted(legal, key=lambda q: (-scores[q], q))
            moved = sorted(ranked[: quotas[layer]])
            if moved and len(moved) < len(ranked):
                gap = scores[ranked[len(moved) - 1]] - scores[ranked[len(moved)]]
                self.clear(gap, 1e-4 * max(scores))
            for q in moved:
                after[at[q]] += turn[q]
            positions.append(np.array(moved, np.int64))
            signs.append(np.array([turn[q] for q in moved], np.int8))
            start += n_out * n_in
        choice = {"positions": positions, "signs": signs}
        return loss, hardness, correct, aligned, scored, choice, after

    def quotas(self, shapes: Any, seed: int, step: int, o: Any) -> list[int]:
        """Return floor(rate N + u) of each layer."""
        number = 0 if self.wrong == "lot-of-step-0" else step
        lots = self.noise.uniform(seed, len(shapes), domain=LEVELS, step=number).tolist()
        if self.wrong == "one-lot":
            lots = lots[:1] * len(lots)
        lots = [0.0] * len(lots) if self.wrong == "quota-rounded-down" else lots
        lots = [0.5] * len(lots) if self.wrong == "quota-to-the-nearest" else lots
        sizes = [u * i for u, i in zip(o["units"], o["inputs"], strict=True)]
        exact = [o["rate"] * size + lot for size, lot in zip(sizes, lots, strict=True)]
        for value in exact:
            self.clear(value - round(value), 1e-6)
        return [int(value) for value in exact]

    def candidates(self, shape: Any, seed: int, step: int, layer: int, o: Any) -> Any:
        """Drawn units, and of each the inputs that are candidates."""
        (n_out, n_in), units, inputs = shape, o["units"][layer], o["inputs"][layer]
        stream = self.noise.stream(seed, UNITS, step, layer)
        drawn = self.noise.subset(stream, n_out, units) if units < n_out else [*range(n_out)]
        columns = []
        for unit in drawn:
            lane = self.noise.lane(layer, 0 if self.wrong == "inputs-a-layer" else unit)
            row = self.noise.subset(self.noise.stream(seed, INPUTS, step, lane), n_in, inputs)
            row = [*range(inputs)] if self.wrong == "first-inputs" else row
            columns.append(row if inputs < n_in else [*range(n_in)])
        return drawn, columns

    def noise_step(
        self,
        model: Any,
        params: Any,
        seed: int,
        method: str,
        step: int,
        steps: int,
        settings: Any,
        x: Any,
        y: Any,
        weight: Any,
    ) -> Any:
        """Take a few steps on one batch: losses, 1 - p_y, alignments, scores, choices, weights."""
        out: list[Any] = []
        for number in range(step, step + steps):
            named = number % 2**16 if self.wrong == "step-of-16-bits" else number
            one = self.sampled if method == "sampled" else self.units
            loss, hard, _correct, a, scores, choice, after = one(
                params, model, (x, y, weight), seed, named, settings
            )
            total = weight.sum()
            plain = not total or self.wrong == "plain-mean"
            mean = loss.mean() if plain else (loss * weight).sum() / total
            size = 1 if self.wrong == "sums-not-means" else len(y)
            out.append((float(mean), hard, [v / size for v in a], scores, choice))
            params = self.cut(params, np.clip(after, -1, 1))
        losses, hardness, alignments, scores, choices = map(list, zip(*out, strict=True))
        return np.array(losses), np.array(hardness), alignments, scores, choices, params

    def cut(self, params: Any, flat: Any) -> Any:
        """Cut weights into the layers of `params`."""
        out, at = {}, 0
        for name, w in params.items():
            out[name] = flat[at : at + w.size].reshape(w.shape).astype(np.int8)
            at += w.size
        return out

    def mlp(self, params: Any, x: Any, **model: Any) -> Any:
        """Return the logits."""
        layers = [w.astype(complex) for w in params.values()]
        return (self.logits(layers, model, x).real,)

    def evaluate(self, params: Any, model: Any, x: Any, y: Any) -> Any:
        """Return the share of right answers."""
        right = self.sums(params, model, (x, y, np.ones(len(y))), -np.inf, [])[2]
        return (float(right.sum() if self.wrong == "count" else right.mean()),)

    def direction_sums(
        self, model: Any, params: Any, x: Any, y: Any, weight: Any, directions: Any, threshold: Any
    ) -> Any:
        """Sum over sparse directions."""
        offsets, positions, signs = (v.tolist() for v in directions)
        spans = [slice(a, b) for a, b in pairwise(offsets)]
        each = [dict(zip(positions[s], signs[s], strict=True)) for s in spans]
        loss, hardness, correct, a, squares = self.sums(
            params, model, (x, y, weight), threshold, each
        )
        return [np.array(a)], [np.array(squares)], loss, hardness, correct

    def unit_sums(
        self, model: Any, params: Any, x: Any, y: Any, weight: Any, units: Any, threshold: Any
    ) -> Any:
        """Sum over all weights into some units."""
        start, alignments, squares = 0, [], []
        for w, drawn in zip(params.values(), units, strict=True):
            n_in = w.shape[1]
            each = [{start + u * n_in + c: 1} for u in drawn.tolist() for c in range(n_in)]
            loss, hardness, correct, a, s = self.sums(
                params, model, (x, y, weight), threshold, each
            )
            alignments.append(np.array(a).reshape(len(drawn), n_in))
            squares.append(np.array(s).reshape(len(drawn), n_in))
            start += w.size
        return alignments, squares, loss, hardness, correct

    # --- Batches of a run

    def draw(
        self, table: Any, seed: int, threshold: float, easy_share: float, step: int, n: int
    ) -> Any:
        """Accept hard pairs with weight 1, learnt ones by chance with weight 1 / easy_share."""
        wrong, shifts = self.wrong, table.shape[1]
        accepted: list[tuple[int, int, float]] = []
        turn = 0
        while len(accepted) < n:
            tries = n if wrong == "as-many-tries-as-wanted" else max(1024, 2 * (n - len(accepted)))
            lane = 0 if wrong == "first-turn-again" else 2 * turn
            stream = self.noise.stream(seed, BATCH, step, lane)
            pairs = (self.noise.below(u, table.size) for u in self.noise.draws(stream))
            lots = self.noise.stream(seed, BATCH, step, lane + (wrong != "chance-of-the-pair"))
            for pair in islice(pairs, tries):
                lot = self.noise.unit(next(lots), next(lots))
                sample, shift = divmod(pair, shifts)
                if wrong == "images-and-shifts-exchanged":
                    shift, sample = divmod(pair, len(table))
                hard = float(table[sample, shift]) > np.float32(threshold)
                if wrong == "hard-on-the-threshold":
                    hard = float(table[sample, shift]) >= np.float32(threshold)
                if hard or lot < easy_share:
                    share = easy_share if wrong == "weight-of-the-share" else 1 / easy_share
                    accepted.append((sample, shift, 1.0 if hard else share))
            turn += 1
        sample, shift, weight = zip(*accepted[:n], strict=True)
        return np.array(sample, np.int64), np.array(shift, np.int64), np.array(weight, np.float32)

    def shifted(self, image: Any, shift: int) -> Any:
        """Move an image down and right; zeros enter."""
        down, right = SHIFTS[shift]
        if self.wrong == "shifts-the-other-way":
            down, right = -down, -right
        out = np.zeros_like(image)
        rows, columns = image.shape
        for r in range(rows):
            for c in range(columns):
                if 0 <= r - down < rows and 0 <= c - right < columns:
                    out[r, c] = image[r - down, c - right]
        return out.ravel()

    def train(self, file: Any, images: Any, labels: Any, steps: int) -> Any:
        """Go on with a run of method units: the choices of its next steps, and the weights."""
        log = History()
        log.read(file)
        plan, recipe, data = (log.head[name] for name in ("plan", "recipe", "data"))
        model = {name: recipe[name] for name in ("logit_scale", "activations")}
        model |= {name: data[name] for name in ("input_scale", "input_offset")}
        table = np.ones((len(labels), recipe["shifts"]), np.float32)
        states = [log.layers(flat) for flat in log.walk_steps(log.choices, log.drawn)]
        done, choices = len(log.choices), []
        params: Any = states[-1]
        for step in range(done + steps):
            share = step / (recipe["steps"] - 1)
            first, last = recipe["batch"]
            count = first * (last / first) ** share
            count = int(count) if self.wrong == "batch-rounded-down" else round(count)
            rules = {name: recipe[name] for name in ("threshold", "easy_share")}
            sample, shift, weight = self.draw(table, plan["seed"], **rules, step=step, n=count)
            pairs = [*zip(sample.tolist(), shift.tolist(), strict=True)]
            x = np.array([self.shifted(images[i], s) for i, s in pairs])
            batch = x, labels[sample].astype(np.int64), weight
            if step < done:  # forward passes of the steps that are logged
                passed = states[-1] if self.wrong == "measured-anew" else states[step]
                hardness = self.sums(passed, model, batch, recipe["threshold"], [])[1]
                if self.wrong == "table-of-ones":
                    continue
            else:
                low, high = recipe["rate"]
                o = {**plan, "threshold": recipe["threshold"], "rate": low * (high / low) ** share}
                _, hardness, *_, choice, after = self.units(
                    params, model, batch, plan["seed"], step, o
                )
                choices.append(choice)
                params = self.cut(params, after)
            for (i, s), value in zip(pairs, hardness.tolist(), strict=True):
                table[i, s] = 1 - value if self.wrong == "p-in-the-table" else value
                if self.wrong == "table-never-changes":
                    table[i, s] = 1
        return choices, params


STEP = (
    "along-the-gradient quota-to-the-nearest lot-of-step-0 one-lot quota-rounded-down "
    "first-inputs inputs-a-layer illegal-moves-kept plain-mean learnt-samples-count "
    "weights-left-out weights-outside-the-squares through-the-deviation mask-of-floats "
    "norm-before-the-logits each-perturbation-clamped lower-median above-the-median-only "
    "sign-of-zero ranked-by-size step-of-16-bits sums-not-means"
)
NETWORK = (
    "offset-first eps-of-1e-6 last-hidden-rounded rounded-after-relu one-scale rounded-up "
    "norm-before-the-logits"
)
SUMS = (
    "along-the-gradient learnt-samples-count weights-left-out weights-outside-the-squares "
    "through-the-deviation mask-of-floats"
)
DRAW = (
    "as-many-tries-as-wanted first-turn-again chance-of-the-pair images-and-shifts-exchanged "
    "hard-on-the-threshold weight-of-the-share"
)
TRAIN = (
    "shifts-the-other-way batch-rounded-down measured-anew table-of-ones p-in-the-table "
    "table-never-changes"
)
METHODS = {
    "NoiseStep.step": ("noise_step", STEP),
    "MLP": ("mlp", NETWORK),
    "evaluate": ("evaluate", "count"),
    "direction_sums_by_jvp": ("direction_sums", SUMS),
    "unit_sums_by_jvp": ("unit_sums", SUMS),
    "training.course.Pool.draw": ("draw", DRAW),
    "train": ("train", TRAIN),
}


def worked(method: str, wrong: str = "") -> Callable[..., Any]:
    """Return a method as a function."""
    function: Callable[..., Any] = getattr(Runs(wrong), method)
    return function


RUNS: dict[str, Callable[..., Any]] = {name: worked(m) for name, (m, _) in METHODS.items()}
WRONG: dict[str, Callable[..., Any]] = {
    f"{name}/{flag}": worked(method, flag)
    for name, (method, flags) in METHODS.items()
    for flag in flags.split()
}
