"""Steps of noise_step worked another way: the expectations of `minibit/vectors/noise_step.json`.

Derivatives are complex steps, ``Im L(w + i h v) / h``, which are exact to the last bits of float64;
draws come from `noise_oracle`, decisions from sorted lists. Nothing here imports the package. No
case lies so near to a kink, a tie or a threshold that float32 could decide it in another way: the
functions refuse such cases. As a script (``python tests/noise_step_oracle.py``) this file works out
what the cases of the vectors must come to, and writes it beside their arguments.
"""

import json
from itertools import accumulate, islice
from pathlib import Path
from statistics import median

import numpy as np

from noise_oracle import (
    oracle_initial_codes,
    oracle_integers,
    oracle_numerator,
    oracle_sparse_noise,
    oracle_subset,
    oracle_uniforms,
)

VECTORS = Path(__file__).resolve().parents[1] / "minibit" / "vectors" / "noise_step.json"
EPS, H = 1e-5, 1e-30
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # down, right


def clear(distances, least=1e-3):
    """Refuse a case in which something lies within `least` of where a decision turns."""
    if np.min(np.abs(distances), initial=np.inf) < least:
        raise ValueError("this case is too near to a decision that rounding may turn")


# --- The model and its derivatives


def logits_of(layers, model, x):
    """The MLP on complex weights, whose imaginary part is h times a direction."""
    out = model["input_scale"] * np.array(x) + model["input_offset"]  # (batch, n_in)
    *hidden, last = layers
    for number, w in enumerate(hidden):
        z = out @ w.T
        centred = z - z.mean(axis=1, keepdims=True)
        variance = (centred * centred).mean(axis=1, keepdims=True)
        rounds = model["activations"] == "int8" and number + 1 < len(hidden)
        z_hat = centred / np.sqrt((variance.real if rounds else variance) + EPS)
        clear(z_hat.real)
        out = np.where(z_hat.real > 0, z_hat, 0)
        if rounds:  # codes hand on; the tangent goes straight through codes above 0
            absmax = np.abs(z_hat.real).max(axis=1, keepdims=True)
            scaled = 127 * z_hat.real / absmax
            clear(scaled - np.floor(scaled) - 0.5)
            codes = np.maximum(np.rint(scaled), 0)
            out = codes * absmax / 127 + 1j * np.where(codes > 0, z_hat.imag, 0)
    return model["logit_scale"] * out @ last.T


def losses_of(layers, model, x, y):
    """Cross entropy of each sample, complex."""
    logits = logits_of(layers, model, x)
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]


def sums_of(weights, shapes, model, batch, threshold, directions):
    """Losses, 1 - p_y, and of each direction the sums of w t and of (w t)^2 over hard samples."""

    def losses(imaginary):
        flat = np.array(weights, float) + 1j * imaginary
        cuts = list(accumulate(a * b for a, b in shapes))[:-1]
        layers = [w.reshape(s) for w, s in zip(np.split(flat, cuts), shapes, strict=True)]
        return losses_of(layers, model, batch["x"], batch["y"])

    loss = losses(np.zeros(len(weights))).real
    hardness = 1 - np.exp(-loss)
    clear(hardness - threshold)
    counted = np.where(hardness > threshold, batch["weight"], 0)
    alignments, squares = [], []
    for direction in directions:
        v = np.zeros(len(weights))
        v[list(direction)] = list(direction.values())
        tangents = counted * losses(H * v).imag / H  # (batch,)
        alignments.append(float(tangents.sum()))
        squares.append(float((tangents**2).sum()))
    return loss, hardness, alignments, squares


def t_scores(alignments, squares):
    """|sum t| / sqrt(sum t^2); 0 where no sample has a tangent."""
    return [abs(a) / s**0.5 if s else 0.0 for a, s in zip(alignments, squares, strict=True)]


# --- One step of either method: what it writes down, and the weights after it


def sampled_step(weights, shapes, model, batch, seed, step, options):
    """Codes where |a| or t reaches the median; w - sum c v, clamped once."""
    numerator = oracle_numerator(options["density"])
    drawn = [
        oracle_sparse_noise(seed, step, p, len(weights), numerator)
        for p in range(options["perturbations"])
    ]
    directions = [dict(zip(*entries, strict=True)) for entries in drawn]
    loss, hardness, a, squares = sums_of(
        weights, shapes, model, batch, options["threshold"], directions
    )
    scores = t_scores(a, squares) if options["score"] == "t" else [abs(value) for value in a]
    middle = median(scores)
    clear([score - middle for score in scores if score != middle], 1e-4 * max(scores, default=0))
    codes = [
        (0 if value == 0 or score < middle else 1 if value > 0 else -1)
        for value, score in zip(a, scores, strict=True)
    ]
    after = list(weights)
    for code, direction in zip(codes, directions, strict=True):
        for position, sign in direction.items():
            after[position] -= code * sign
    told = {
        "perturbations": [{"positions": p, "signs": s} for p, s in drawn],
        "alignments": a,
        "squares": squares,
        "codes": codes,
    }
    return loss, hardness, told, [min(1, max(-1, w)) for w in after]


def units_step(weights, shapes, model, batch, seed, step, options):
    """The best floor(rate N + u) legal moves of each layer, against their alignments."""
    after, layers, start = list(weights), [], 0
    numbers = oracle_uniforms(seed, 6, step, 0)
    for layer, (n_out, n_in) in enumerate(shapes):
        count = min(options["inputs"][layer], n_in)
        units = oracle_subset(seed, 3, step, layer, n_out, options["units"][layer])
        columns = [oracle_subset(seed, 4, step, layer * 2**20 + u, n_in, count) for u in units]
        at = [start + u * n_in + c for u, row in zip(units, columns, strict=True) for c in row]
        loss, hardness, a, squares = sums_of(
            weights, shapes, model, batch, options["threshold"], [{p: 1} for p in at]
        )
        lot = next(numbers)
        exact = options["rate"] * len(at) + lot
        clear(exact - round(exact), 1e-6)
        scores = t_scores(a, squares)
        signs = [-1 if value > 0 else 1 for value in a]
        legal = [q for q, p in enumerate(at) if scores[q] and -1 <= weights[p] + signs[q] <= 1]
        ranked = sorted(legal, key=lambda q: (-scores[q], q))
        moved = sorted(ranked[: int(exact)])
        if moved and len(moved) < len(ranked):
            clear(scores[ranked[len(moved) - 1]] - scores[ranked[len(moved)]], 1e-4 * max(scores))
        for q in moved:
            after[at[q]] += signs[q]
        layers.append(
            {
                "units": units,
                "inputs": columns if count < n_in else None,
                "alignments": a,
                "squares": squares,
                "lot": lot,
                "quota": int(exact),
                "positions": moved,
                "signs": [signs[q] for q in moved],
            }
        )
        start += n_out * n_in
    return loss, hardness, {"layers": layers}, after


STEP = {"sampled": sampled_step, "units": units_step}


def steps_of(arguments):
    """A few steps on one batch."""
    params = arguments["params"].values()
    shapes = [(len(w), len(w[0])) for w in params]
    weights = [code for w in params for row in w for code in row]
    batch = {name: arguments[name] for name in ("x", "y", "weight")}
    steps = []
    for step in range(arguments["step"], arguments["step"] + arguments["steps"]):
        loss, hardness, told, weights = STEP[arguments["method"]](
            weights,
            shapes,
            arguments["model"],
            batch,
            arguments["seed"],
            step,
            arguments["options"],
        )
        total = sum(batch["weight"])
        shares = [w / total for w in batch["weight"]] if total else [1 / len(loss)] * len(loss)
        mean = sum(share * value for share, value in zip(shares, loss.tolist(), strict=True))
        steps.append({"loss": mean, "hardness": hardness.tolist(), **told})
    return {"steps": steps, "weights": weights}


# --- Batches of a run


def draw_of(arguments):
    """Accept hard pairs with weight 1, learnt ones by lot with weight 1 / easy_share."""
    table, easy_share = arguments["table"], arguments["easy_share"]
    seed, step, count = (arguments[name] for name in ("seed", "step", "count"))
    shifts, accepted, turn = len(table[0]), [], 0
    while len(accepted) < count:
        turn_size = max(1024, 2 * (count - len(accepted)))
        pairs = oracle_integers(seed, 2, step, 2 * turn, len(table) * shifts)
        numbers = oracle_uniforms(seed, 2, step, 2 * turn + 1)
        for pair, lot in islice(zip(pairs, numbers, strict=True), turn_size):
            sample, shift = divmod(pair, shifts)
            hard = table[sample][shift] > arguments["threshold"]
            if hard or lot < easy_share:
                accepted.append((sample, shift, 1.0 if hard else 1 / easy_share))
        turn += 1
    sample, shift, weight = map(list, zip(*accepted[:count], strict=True))
    return {"sample": sample, "shift": shift, "weight": weight}


def shifted_image(image, shape, shift):
    """Move an image down and right; zeros enter."""
    rows, columns = shape
    down, right = SHIFTS[shift]
    return [
        image[(r - down) * columns + c - right]
        if 0 <= r - down < rows and 0 <= c - right < columns
        else 0
        for r in range(rows)
        for c in range(columns)
    ]


def geometric(pair, steps, step):
    """From the first value at step 0 to the last at step `steps` - 1."""
    first, last = pair
    return first * (last / first) ** (step / (steps - 1))


def run_of(arguments):
    """Some steps of a run of method units from the records that its log holds, maybe none."""
    plan, recipe, data = (arguments["header"][name] for name in ("plan", "recipe", "data"))
    shapes, seed = [tuple(shape) for shape in plan["shapes"]], plan["seed"]
    model = {name: recipe[name] for name in ("logit_scale", "activations")}
    model |= {name: data[name] for name in ("input_scale", "input_offset")}
    weights = [
        code
        for layer, (n_out, n_in) in enumerate(shapes)
        for code in oracle_initial_codes(seed, n_out * n_in, plan["zeros"], layer)
    ]
    labels, shifts = arguments["labels"], range(recipe["shifts"])
    table = [[1.0] * len(shifts) for _ in labels]

    def visit(pairs, weight):
        """A batch of (image, shift) pairs."""
        x = [shifted_image(arguments["images"][i], arguments["shape"], s) for i, s in pairs]
        return {"x": x, "y": [labels[i] for i, _ in pairs], "weight": weight}

    def batch_of(step):
        """The draw of a step by the table as it is, and its pairs."""
        draw = {name: recipe[name] for name in ("threshold", "easy_share")}
        draw |= {"seed": seed, "step": step, "table": table}
        draw["count"] = round(geometric(recipe["batch"], recipe["steps"], step))
        drawn = draw_of(draw)
        return drawn, list(zip(drawn["sample"], drawn["shift"], strict=True))

    for step, record in enumerate(arguments["records"]):  # passes of a run that is resumed
        drawn, pairs = batch_of(step)
        batch = visit(pairs, drawn["weight"])
        _, hardness, *_ = sums_of(weights, shapes, model, batch, recipe["threshold"], [])
        for (i, s), value in zip(pairs, hardness.tolist(), strict=True):
            table[i][s] = value
        start = 0
        for layer, (n_out, n_in) in enumerate(shapes):
            units = oracle_subset(seed, 3, step, layer, n_out, plan["units"][layer])
            for q, sign in zip(record["positions"][layer], record["signs"][layer], strict=True):
                weights[start + units[q // n_in] * n_in + q % n_in] += sign
            start += n_out * n_in
    first = len(arguments["records"])
    measured, batches, records = [list(row) for row in table], [], []
    for step in range(first, first + arguments["steps"]):
        drawn, pairs = batch_of(step)
        batches.append(drawn)
        options = {"threshold": recipe["threshold"], "units": plan["units"]}
        options |= {"inputs": plan["inputs"]}
        options["rate"] = geometric(recipe["rate"], recipe["steps"], step)
        _, hardness, told, weights = units_step(
            weights, shapes, model, visit(pairs, batches[-1]["weight"]), seed, step, options
        )
        for (i, s), value in zip(pairs, hardness.tolist(), strict=True):
            table[i][s] = value
        records.append(
            {name: [layer[name] for layer in told["layers"]] for name in ("positions", "signs")}
        )
    return {"table": measured, "batches": batches, "records": records, "weights": weights}


def expected_of(case):
    """What a case of the file must come to."""
    return {"step": steps_of, "draw": draw_of, "run": run_of}[case["function"]](case["arguments"])


# --- The file


def rounded(value):
    """Nine digits are enough for float32."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def write():
    """Work out the expectation of every case of the file, and write it again, a case per line."""
    whole = json.loads(VECTORS.read_text(encoding="utf-8"))
    cases = [{**case, "expected": rounded(expected_of(case))} for case in whole.pop("cases")]
    head = [f'  "{name}": {json.dumps(text)},' for name, text in whole.items()]
    lines = ",\n".join(f"    {json.dumps(case)}" for case in cases)
    text = "\n".join(["{", *head, '  "cases": [', lines, "  ]", "}", ""])
    VECTORS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
