"""minibit in JAX: noise, quantisers, top-K, NF4, layers with derivatives, a block, a step.

One file that needs jax alone. It follows the contracts (docstrings, docs/porting.md) and is held by
the package's vectors::

    minibit conform --port "python docs/ports/jax/adapter.py"

Nothing depends on ``jax_enable_x64``. Words of noise are uint32 arrays, and what has 64 bits is two
of them: a product of words is made of 16-bit halves, a 64-bit draw is compared high word first.
Numbers beyond 32 bits (positions, `integers`) leave JAX as two uint32 arrays and are joined by
NumPy. Means of weights, which are sums of doubles, are taken inside ``jax.enable_x64``. Quantisers
compute in float32 in the order of operations of the published code. A refusal is a ValueError that
names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = Any
U32, F32, I32, I8 = jnp.uint32, jnp.float32, jnp.int32, jnp.int8
MASK = 0xFFFFFFFF

# --- Philox4x32-10, on uint32 alone ---------------------------------------------------------------

NOISE, INITIAL, UNITS, INPUTS, USER = 0, 1, 3, 4, 255
MULTIPLIERS = np.uint32(0xD2511F53), np.uint32(0xCD9E8D57)
KEY_STEPS = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)


def multiply(a: Array, b: Array) -> tuple[Array, Array]:
    """High and low 32 bits of a product, by 16-bit halves: no partial product passes 2**32."""
    a_low, a_high, b_low, b_high = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low, high = a_low * b_high, a_high * b_low
    middle = (a_low * b_low >> 16) + (low & 0xFFFF) + (high & 0xFFFF)
    return a_high * b_high + (low >> 16) + (high >> 16) + (middle >> 16), a * b


@jax.jit
def philox4x32(counter: Array, key: Array) -> Array:
    """Encrypt counters (..., 4) with keys (..., 2): ten rounds of two multiplications."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key[..., 0], key[..., 1]
    for _ in range(10):
        high0, low0 = multiply(c0, MULTIPLIERS[0])
        high1, low1 = multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + KEY_STEPS[0], k1 + KEY_STEPS[1]  # modulo 2**32
    return jnp.stack(jnp.broadcast_arrays(c0, c1, c2, c3), -1)  # (..., 4)


def _in_range(name: str, value: int, most: int, least: int = 0) -> int:
    """Return an integer, if it lies from `least` to `most`."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie from {least} to {most}, got {value}")
    return value


def _encrypt(seed: int, step: int, block: Any, draw: Any, lane: Any) -> Array:
    """Words of the counters (block, draw, lane, step), which broadcast: (..., 4)."""
    _in_range("seed", seed, 2**64 - 1)
    _in_range("step", step, MASK)
    parts = np.broadcast_arrays(
        *(np.asarray(part, np.uint32) for part in (block, draw, lane, step))
    )
    return philox4x32(jnp.asarray(np.stack(parts, -1)), np.uint32([seed & MASK, seed >> 32]))


def words(seed: int, domain: int, step: int, count: int, lane: int = 0, start: int = 0) -> Array:
    """Words start, ..., start + count - 1 of a stream, uint32 (count,)."""
    _in_range("domain", domain, 2**8 - 1)
    _in_range("lane", lane, MASK)
    _in_range("start", start, 2**34)
    _in_range("count", count, 2**34 - start)
    blocks = np.arange(start // 4, -(-(start + count) // 4), dtype=np.uint32)
    return _encrypt(seed, step, blocks, domain << 24, lane).reshape(-1)[start % 4 :][:count]


def uniform(seed: int, count: int, domain: int = USER, step: int = 0, lane: int = 0) -> np.ndarray:
    """Doubles in [0, 1), of NumPy: 27 bits of one word above 26 of the next."""
    high, low = np.asarray(words(seed, domain, step, 2 * count, lane)).reshape(-1, 2).T
    return ((high >> 5) * 2.0**26 + (low >> 6)) / 2.0**53  # (count,)


def integers(
    seed: int, high: int, count: int, domain: int, step: int = 0, lane: int = 0
) -> np.ndarray:
    """Integers in [0, high), up to 2**63: floor(u high / 2**64) in Python's integers."""
    _in_range("high", high, 2**63, 1)
    drawn = np.asarray(words(seed, domain, step, 2 * count, lane)).reshape(-1, 2).tolist()
    return np.array([((a << 32 | b) * high) >> 64 for a, b in drawn], np.int64)


# --- sparse noise ---------------------------------------------------------------------------------


def numerator_of(name: str, share: float | int) -> int:
    """Return the numerator over 2**32 of a share, ties to even; an int is the numerator itself."""
    if isinstance(share, int):
        return _in_range(name, share, 2**32)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {share}")
    return round(Fraction(share) * 2**32)


def noise_constants(density: float | int) -> tuple[int, int, list[int]]:
    """Numerator, bits of a block, and T_j = floor(2**64 P(k <= j)) as Python's integers."""
    numerator = numerator_of("density", density)
    bits = min(16, max(4, 32 - (numerator - 1).bit_length())) if numerator else 16
    return numerator, bits, _count_table(numerator, bits)


@cache
def _count_table(numerator: int, bits: int) -> list[int]:
    """Floors of exact probabilities: ``32 B`` fractional bits hold every term unrounded."""
    block, p, q = 2**bits, numerator, 2**32 - numerator
    if p == 0 or q == 0:
        return [0] * block if p else []
    term, total, table = q**block, 0, []
    for j in range(block):
        total += term  # P(k <= j) 2**(32 B)
        floor = total >> (32 * block - 64)
        if floor >= 2**64 - 1:
            break
        table.append(floor)
        term = term * (block - j) * p // ((j + 1) * q)  # exact: a binomial coefficient
    return table


@jax.jit
def _counts(drawn: Array, table: Array) -> Array:
    """#{j : T_j <= u} for 64-bit draws, the first two words of each row; T as (j, 2) words."""
    high, low = drawn[:, :1], drawn[:, 1:2]  # (blocks, 1)
    below = (table[:, 0] < high) | ((table[:, 0] == high) & (table[:, 1] <= low))
    return below.sum(1, dtype=I32)  # (blocks,)


@jax.jit
def _taken(position: Array, sign: Array, count: Array) -> tuple[Array, Array, Array]:
    """Of draws (blocks, n) keep the first `count` distinct: a mask, and how many there are."""
    n = position.shape[1]
    earlier = jnp.tril(jnp.ones((n, n), bool), -1)
    again = ((position[:, :, None] == position[:, None, :]) & earlier).any(2)
    order = jnp.cumsum(~again, 1, dtype=I32)  # (blocks, n)
    return ~again & (order <= count[:, None]), sign, order[:, -1]


def sparse_noise(
    seed: int,
    step: int,
    perturbation: int,
    size: int,
    density: float | int,
    blocks: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions, increasing int64, and signs, int8, of one sparse perturbation, of NumPy."""
    _, bits, table = noise_constants(density)
    _in_range("perturbation", perturbation, MASK)
    total = -(-_in_range("size", size, 2 ** (32 + bits)) >> bits)
    chosen = np.arange(total) if blocks is None else np.unique(np.asarray(blocks, np.int64))
    if len(chosen):
        _in_range("blocks", int(chosen[0]), total - 1)
        _in_range("blocks", int(chosen[-1]), total - 1)
    first = _encrypt(seed, step, chosen, NOISE << 24, perturbation)  # (blocks, 4)
    bounds = np.array([[bound >> 32, bound & MASK] for bound in table], np.uint32).reshape(-1, 2)
    counts = _counts(first, jnp.asarray(bounds))
    drawn, draws, found = [first[:, 2:]], 0, jnp.zeros_like(counts)
    while bool((found < counts).any()) or not draws:
        more = max(1, 2 ** (draws - 1).bit_length() if draws else 0)  # as many draws again
        new = np.arange(draws + 1, draws + 1 + more)
        tail = _encrypt(seed, step, chosen[:, None], (NOISE << 24) + new, perturbation)
        drawn.append(tail.reshape(len(chosen), -1))
        draws += more
        word = jnp.concatenate(drawn, 1)  # (blocks, 2 + 4 draws)
        kept, sign, found = _taken(word >> (32 - bits), 1 - 2 * (word & 1).astype(I8), counts)
    row, slot = np.nonzero(kept)
    positions = (chosen[row] << bits) + np.asarray(word >> (32 - bits))[row, slot]
    order = np.argsort(positions)
    inside = positions[order] < size  # the last block is cut
    return positions[order][inside], np.asarray(sign)[row, slot][order][inside]


def initial_codes(seed: int, count: int, zeros: float | int, layer: int = 0) -> Array:
    """Draw a layer's weights, int8 (count,): 0 below the numerator, else the lowest bit's sign."""
    numerator = numerator_of("zeros", zeros)
    drawn = words(seed, INITIAL, 0, count, layer)
    zero = drawn <= np.uint32(max(numerator - 1, 0)) if numerator else jnp.zeros(count, bool)
    return jnp.where(zero, 0, 1 - 2 * (drawn & 1).astype(I8)).astype(I8)


def _subset(seed: int, domain: int, step: int, lane: int, n: int, count: int) -> Array:
    """Floyd's algorithm: ``count`` distinct numbers below n, increasing."""
    _in_range("count", count, _in_range("n", n, 2**24))
    if count == n:  # all: nothing is drawn
        return jnp.arange(n, dtype=I32)
    drawn = words(seed, domain, step, 2 * count, lane).reshape(-1, 2)
    return _floyd(drawn, jnp.uint32(n - count)) if count else jnp.zeros(0, I32)


@jax.jit
def _floyd(drawn: Array, least: Array) -> Array:
    """floor(u (j + 1) / 2**64) of 64-bit draws, or j where that is taken; sorted."""
    j = least + jnp.arange(len(drawn), dtype=U32)
    whole, part = multiply(drawn[:, 0], j + 1)
    below, _ = multiply(drawn[:, 1], j + 1)
    t = whole + (part + below < part)  # the carry of the low halves

    def place(i: Array, taken: Array) -> Array:
        again = ((taken == t[i]) & (jnp.arange(len(t)) < i)).any()
        return taken.at[i].set(jnp.where(again, j[i], t[i]))

    return jnp.sort(lax.fori_loop(0, len(t), place, t)).astype(I32)


def draw_units(seed: int, step: int, layer: int, n_out: int, count: int) -> Array:
    """Distinct units of a layer, increasing."""
    return _subset(seed, UNITS, step, _in_range("layer", layer, MASK), n_out, count)


def draw_inputs(seed: int, step: int, layer: int, unit: int, n_in: int, count: int) -> Array:
    """Distinct inputs of a unit: lane 2**20 layer + unit."""
    lane = (_in_range("layer", layer, 2**12 - 1) << 20) + _in_range("unit", unit, 2**20 - 1)
    return _subset(seed, INPUTS, step, lane, n_in, count)


# --- BitNet b1.58: absmean, absmax, straight through ----------------------------------------------

SMALLEST = np.float32(1e-5)  # gamma and absmax are at least this


def _finite(name: str, x: Array) -> Array:
    """Return x as float32, if every entry is finite; a traced x is not looked at."""
    x = jnp.asarray(x, F32)
    if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got {x[~jnp.isfinite(x)][0]}")
    return x


def _mean(w: Array) -> Array:
    """Return the mean of float32 numbers, summed in float64 and rounded once."""
    with jax.enable_x64(True):
        return (jnp.sum(w, dtype=jnp.float64) / w.size).astype(F32)


def _weights(w: Array) -> Array:
    """Return weights as finite float32, of which there is one at least."""
    if not jnp.size(w):
        raise ValueError(f"w must not be empty, got shape {jnp.shape(w)}")
    return _finite("w", w)


def absmean_quantize(w: Array) -> tuple[Array, Array]:
    """Codes int8 and gamma = max(mean |w|, 1e-5); the reciprocal comes first."""
    w = _weights(w)
    gamma = jnp.maximum(_mean(jnp.abs(w)), SMALLEST)
    return jnp.clip(jnp.round(w * (1 / gamma)), -1, 1).astype(I8), gamma


def absmax_quantize(x: Array) -> tuple[Array, Array]:
    """Codes int8 and scale = (1 / max |x|) 127 of every token, (..., 1)."""
    x = _finite("x", x)
    absmax = jnp.max(jnp.abs(x), -1, keepdims=True, initial=SMALLEST)
    scale = lax.optimization_barrier(1 / absmax) * 127  # else XLA may divide 127 by absmax
    return jnp.round(x * scale).astype(I8), scale


def binary_quantize(w: Array) -> tuple[Array, Array]:
    """Signs of w - mean w, -1 at the mean itself, and beta = mean |w|: BitNet b1."""
    w = _weights(w)
    return jnp.where(w > _mean(w), 1, -1).astype(I8), _mean(jnp.abs(w))


@jax.custom_jvp
def _straight(x: Array, y: Array) -> Array:
    """Return the second argument's value, with the first one's derivative."""
    return y


_straight.defjvp(lambda primals, tangents: (primals[1], tangents[0]))


def _fake(x: Array, quantised: Array, strength: float) -> Array:
    """Go a share of the way to the quantised values, straight through."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    plain, quantised = lax.stop_gradient((x, quantised.astype(x.dtype)))
    value = quantised if strength == 1 else plain + strength * (quantised - plain)
    return _straight(x, value)


def fake_quant_weight(w: Array, strength: float = 1.0) -> Array:
    """Weights as codes / (1 / gamma), as published, with the derivative of the identity."""
    codes, gamma = absmean_quantize(lax.stop_gradient(w))
    return _fake(w, codes * (1 / (1 / gamma)), strength)


def fake_quant_activation(x: Array, strength: float = 1.0) -> Array:
    """Activations as codes / scale, with the derivative of the identity."""
    codes, scale = absmax_quantize(lax.stop_gradient(x))
    return _fake(x, codes / scale, strength)


def bit_linear(x: Array, w: Array, strength: float = 1.0) -> Array:
    """Multiply as b1.58 trains: both sides fake-quantised."""
    return ternary_linear(fake_quant_activation(x, strength), fake_quant_weight(w, strength))


# --- layers ---------------------------------------------------------------------------------------


def _floating(x: Array) -> Array:
    """Cast integers to float32 and let floats through."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(F32)


def ternary_linear(x: Array, w: Array, scale: Any = None) -> Array:
    """y = scale * x w^T."""
    x, w = _floating(x), _floating(w)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"x {x.shape} must fit w {w.shape}")
    y = jnp.matmul(x, w.astype(x.dtype).T, precision="highest")
    return y if scale is None else scale * y


def ternary_matmul_int8(x: Array, codes: Array) -> Array:
    """Multiply int8 codes by ternary codes, exactly: no int16 holds the int32 sums."""
    if x.shape[-1] != codes.shape[1]:
        raise ValueError(f"x {x.shape} must fit matrix {codes.shape}")
    return jnp.matmul(x.astype(I32), codes.astype(I32).T)


def ternary_matmul(x: Array, codes: Array, gamma: float = 1.0) -> Array:
    """Quantise tokens, multiply exactly, scale: y = z (gamma / scale), each step in float32."""
    q, scale = absmax_quantize(x)
    return ternary_matmul_int8(q, codes).astype(F32) * (np.float32(gamma) / scale)


def _normalised(x: Array, eps: float, centre: bool) -> Array:
    """x / sqrt(mean x^2 + eps) of every row; `centre` takes the mean off first."""
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    x = _floating(x)
    if x.ndim == 0 or not x.shape[-1]:
        raise ValueError(f"x must have a last axis that is not empty, got {x.shape}")
    x = x - x.mean(-1, keepdims=True) if centre else x
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps)


def layer_norm(x: Array, eps: float = 1e-5) -> Array:
    """(x - mean x) / sqrt(var x + eps); the variance is divided by n."""
    return _normalised(x, eps, centre=True)


def rms_norm(x: Array, gain: Array | None = None, eps: float = 1e-5) -> Array:
    """gain x / sqrt(mean x^2 + eps)."""
    z = _normalised(x, eps, centre=False)
    return z if gain is None else gain * z


def relu(x: Array) -> Array:
    """max(x, 0), with derivative 0 at 0, where that of ``jnp.maximum`` is 1/2; NaN stays NaN."""
    x = _floating(x)
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def squared_relu(x: Array) -> Array:
    """max(x, 0)^2."""
    return relu(x) * relu(x)


def cross_entropy(logits: Array, labels: Array, reduction: str = "mean") -> Array:
    """logsumexp(z) - z[label], its mean or one a label."""
    logits, classes = _floating(logits), logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {labels.shape} must fit logits {logits.shape}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    known = not isinstance(labels, jax.core.Tracer)  # JAX clamps an index that is out of range
    if known and bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"labels must lie in [0, {classes})")
    if reduction == "mean" and not labels.size:
        raise ValueError("labels must not be empty for reduction 'mean'")
    picked = jnp.take_along_axis(logits, labels[..., None].astype(I32), -1)[..., 0]
    losses = jax.nn.logsumexp(logits, -1) - picked
    return losses.mean() if reduction == "mean" else losses


def mlp(
    params: Mapping[str, Array],
    x: Array,
    logit_scale: float = 1.0,
    eps: float = 1e-5,
    activations: str = "float",
) -> Array:
    """Logits of the ternary MLP.

    h <- relu(layer_norm(h W^T)); with int8 activations all hidden layers but the last round what
    the norm returns, before relu, and their standard deviation counts as constant.
    """
    if not params or set(params) != {f"w{i + 1}" for i in range(len(params))}:
        raise ValueError(f"params must be named w1, w2, ... without gaps, got {list(params)}")
    if activations not in ("float", "int8"):
        raise ValueError(f"activations must be 'float' or 'int8', got {activations!r}")
    *hidden, last = (params[f"w{i + 1}"] for i in range(len(params)))
    h = x
    for layer, w in enumerate(hidden):
        z = ternary_linear(h, w)
        if activations == "int8" and layer + 1 < len(hidden):
            centred = z - z.mean(-1, keepdims=True)
            deviation = lax.stop_gradient(
                jnp.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
            )
            h = relu(fake_quant_activation(centred / deviation))
        else:
            h = relu(layer_norm(z, eps))
    return logit_scale * ternary_linear(h, last)


# --- top-K ----------------------------------------------------------------------------------------


def topk_count(n: int, sparsity: float | str) -> int:
    """floor((1 - sparsity) n), of the decimal number that prints the share."""
    share = Fraction(sparsity if isinstance(sparsity, str) else repr(float(sparsity)))
    if not 0 <= share < 1 or (k := int((1 - share) * n // 1)) < 1:
        raise ValueError(f"sparsity must lie in [0, 1) and keep one of n = {n}, got {sparsity}")
    return k


def topk_mask(x: Array, k: int) -> Array:
    """Mark the k largest magnitudes of each row; a stable sort gives ties to the lowest index.

    Magnitudes are compared as integers, by their bits: a float comparison on the CPU may take
    subnormals for 0.
    """
    if not isinstance(x, jax.core.Tracer) and bool(jnp.isnan(x).any()):
        raise ValueError("x must hold no NaN")
    _in_range("k", k, x.shape[-1], 1)
    magnitudes = jnp.abs(lax.stop_gradient(x))
    unsigned = {2: jnp.uint16, 4: U32, 8: jnp.uint64}[x.dtype.itemsize]
    bits = lax.bitcast_convert_type(magnitudes, unsigned)
    order = jnp.argsort(~bits, axis=-1, stable=True)  # (..., n)
    return jnp.argsort(order, axis=-1) < k  # the place of each entry in that order


def block_topk_mask(x: Array, n: int, m: int) -> Array:
    """Mark the n largest magnitudes of every m neighbours."""
    if m < 1 or x.shape[-1] % m:
        raise ValueError(f"m must divide the last axis of {x.shape}, got {m}")
    return topk_mask(x.reshape(*x.shape[:-1], -1, m), n).reshape(x.shape)


def topk_sparsify(x: Array, k: int, straight: bool = True, rescale: bool = False) -> Array:
    """Keep the k largest magnitudes of a row; the derivative passes straight, or by the mask."""
    return _sparsified(x, topk_mask(x, k), straight, rescale)


def block_topk_sparsify(
    x: Array, n: int, m: int, straight: bool = True, rescale: bool = False
) -> Array:
    """Keep the n largest magnitudes of every m neighbours; a row is rescaled as a whole."""
    return _sparsified(x, block_topk_mask(x, n, m), straight, rescale)


def _sparsified(x: Array, mask: Array, straight: bool, rescale: bool) -> Array:
    """Zeros, +0, where the mask has none; divided by the row's length if that is wanted."""
    y = jnp.where(mask, x, jnp.zeros((), x.dtype))
    y = _straight(x, lax.stop_gradient(y)) if straight else y
    return y / jnp.sqrt((y * y).sum(-1, keepdims=True) + 1e-12) if rescale else y


def topk_quantize(x: Array, k: int) -> tuple[Array, Array]:
    """Int8 codes of the k largest entries, chosen by x and not by its codes, and scales."""
    return absmax_quantize(topk_sparsify(_finite("x", x), k))


# --- NF4 ------------------------------------------------------------------------------------------

NF4_CODE = np.float32(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TINY = np.float32(1e-38)  # what divides a block is at least this


def nearest_code(s: Array, codebook: Array = NF4_CODE) -> Array:
    """Count the midpoints that a value exceeds: one at a midpoint has the lower code."""
    midpoints = (codebook[:-1] + codebook[1:]) / 2
    return (jnp.asarray(s, F32)[..., None] > midpoints).sum(-1).astype(jnp.uint8)


def quantize_nf4(w: Array, block: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Bytes, the first code of each in its high half, and the absmax of every block, of NumPy.

    XLA on a CPU takes subnormal float32 numbers for 0; 1e-38, the least divisor, is one. Weights
    are packed once, outside of any step, so NumPy does it.
    """
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {BLOCKS}, got {block}")
    flat = np.asarray(_weights(w)).reshape(-1)
    full = flat.size - flat.size % block
    whole, tail = flat[:full].reshape(-1, block), flat[full:]
    absmax = np.abs(whole).max(1, initial=0)
    s = (whole * (1 / np.maximum(absmax, TINY))[:, None]).reshape(-1)
    if tail.size:  # a shorter last block divides, and keeps the clamped value
        last = np.maximum(np.abs(tail).max(), TINY)
        absmax, s = np.append(absmax, last), np.append(s, tail / last)
    codes = np.asarray(nearest_code(np.clip(s, -1, 1)))
    codes = np.pad(codes, (0, codes.size % 2), constant_values=7)  # a lone code meets a zero
    return codes[0::2] << 4 | codes[1::2], absmax


def dequantize_nf4(packed: Array, absmax: Array, shape: Sequence[int], block: int = 64) -> Array:
    """Return the weights: one float32 product each."""
    size = math.prod(shape)
    codes = jnp.stack([packed >> 4, packed & 15], 1).reshape(-1)[:size]
    return (jnp.asarray(NF4_CODE)[codes] * jnp.repeat(absmax, block)[:size]).reshape(shape)


# --- the transformer of BitNet b1.58 2B4T ---------------------------------------------------------


def rotate(x: Array, theta: float) -> Array:
    """Turn pairs (i, i + half) of x (batch, tokens, heads, width) by their position's angle."""
    tokens, width = x.shape[1], x.shape[3]
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=F32) / width)  # (half,)
    angle = (jnp.arange(tokens, dtype=F32)[:, None] * frequency)[:, None]  # (tokens, 1, half)
    a, b = jnp.split(x, 2, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def causal_attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(width)) v over earlier tokens; neighbouring heads share keys."""
    tokens, heads, width = q.shape[1:]
    k, v = (jnp.repeat(y, heads // y.shape[2], 2) for y in (k, v))
    scores = jnp.einsum("bqhw,bkhw->bhqk", q, k, precision="highest") / math.sqrt(width)
    scores = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhw->bqhw", jax.nn.softmax(scores, -1), v, precision="highest")


def block(params: Mapping[str, Array], x: Array, config: Mapping[str, Any]) -> Array:
    """One layer on the residual stream x (batch, tokens, hidden)."""
    eps, theta = config["rms_eps"], config["rope_theta"]

    def norm(h: Array, name: str) -> Array:  # a model may have no sub-norms
        return rms_norm(h, params[name], eps) if name in params else h

    def project(h: Array, name: str, heads: int | None = None) -> Array:
        y = ternary_linear(h, params[f"{name}_proj"])
        return y if heads is None else y.reshape(*y.shape[:2], heads, -1)

    h = norm(x, "input_layernorm")
    q = rotate(project(h, "self_attn.q", config["heads"]), theta)
    k = rotate(project(h, "self_attn.k", config["kv_heads"]), theta)
    mixed = causal_attention(q, k, project(h, "self_attn.v", config["kv_heads"])).reshape(x.shape)
    x = x + project(norm(mixed, "self_attn.attn_sub_norm"), "self_attn.o")
    h = norm(x, "post_attention_layernorm")
    unit = squared_relu(project(h, "mlp.gate")) * project(h, "mlp.up")
    return x + project(norm(unit, "mlp.ffn_sub_norm"), "mlp.down")


def forward(config: Mapping[str, Any], params: Mapping[str, Array], tokens: Array) -> Array:
    """Logits of the next token at every position, (batch, tokens, vocab)."""
    config = {"rope_theta": 10000.0, "rms_eps": 1e-5, **config}
    x = params["embed_tokens"][tokens]
    for layer in range(config["layers"]):
        own = f"layers.{layer}."
        here = {name.removeprefix(own): w for name, w in params.items() if name.startswith(own)}
        x = block(here, x, config)
    head = params.get("lm_head", params["embed_tokens"])
    return ternary_linear(rms_norm(x, params["norm"], config["rms_eps"]), head)


# --- the choices of a step, and a step ------------------------------------------------------------


def _told(alignments: Array) -> Array:
    """Alignments that overflowed tell nothing, and are 0."""
    return jnp.where(jnp.isfinite(alignments), alignments, 0)


def t_score(alignments: Array, squares: Array) -> Array:
    """|sum a| / sqrt(sum a^2); 0 where no sample has an alignment."""
    spread = jnp.sqrt(squares)
    return jnp.abs(alignments) / jnp.where(spread > 0, spread, jnp.inf)


def keep_terns(alignments: Array, squares: Array, score: str) -> Array:
    """sign(a) where the score is at least the median of all scores, else 0."""
    alignments = _told(alignments)
    if score not in ("absolute", "t"):
        raise ValueError(f"score must be 'absolute' or 't', got {score!r}")
    scores = jnp.abs(alignments) if score == "absolute" else t_score(alignments, squares)
    if not scores.size:
        return jnp.zeros(0, I8)
    return jnp.where(scores >= jnp.median(scores), jnp.sign(alignments), 0).astype(I8)


def keep_moves(
    alignments: Array, squares: Array, weights: Array, count: int
) -> tuple[Array, Array]:
    """Keep the `count` best legal moves of a layer: candidates, sorted, and their directions."""
    alignments = _told(alignments)
    signs = -jnp.sign(alignments).astype(I8).reshape(-1)
    legal = jnp.abs(weights.reshape(-1) + signs) <= 1  # else the clamp would cancel it
    scores = jnp.where(legal, t_score(alignments, squares).reshape(-1), 0)
    count = min(count, int(jnp.count_nonzero(scores)))
    if count <= 0:
        return jnp.zeros(0, I32), jnp.zeros(0, I8)
    positions = jnp.flatnonzero(topk_mask(scores, count))
    return positions, signs[positions]


@partial(jax.jit, static_argnames=("activations",))
def alignments(
    params: Mapping[str, Array],
    x: Array,
    labels: Array,
    directions: Mapping[str, Array],
    logit_scale: float = 1.0,
    activations: str = "float",
) -> Array:
    """Slope of each sample's loss along each direction, (directions, batch): forward mode, batched.

    `params` are float32; `directions` have an axis more, in front.
    """

    def losses(weights: Mapping[str, Array]) -> Array:
        logits = mlp(weights, x, logit_scale, activations=activations)
        return cross_entropy(logits, labels, "none")

    return jax.vmap(lambda direction: jax.jvp(losses, (params,), (direction,))[1])(directions)


def sampled_step(
    params: Mapping[str, Array],
    x: Array,
    labels: Array,
    seed: int,
    step: int,
    perturbations: int,
    density: float | int,
    *,
    score: str = "absolute",
    weight: Array | None = None,
    logit_scale: float = 1.0,
    activations: str = "float",
) -> tuple[dict[str, Array], Array]:
    """Take a step of noise_step: sparse directions, their slopes, codes, and one clamp.

    Returns the int8 weights and the codes. A sample's weight multiplies its slope, in the squares
    too. All samples count, however well the network knows them.
    """
    names = sorted(params)
    sizes = [params[name].size for name in names]
    total = sum(sizes)
    noise = np.zeros((perturbations, total), np.int8)
    for i in range(perturbations):
        positions, signs = sparse_noise(seed, step, i, total, density)
        noise[i, positions] = signs
    parts = np.split(noise, np.cumsum(sizes)[:-1], 1)
    shaped = {
        name: jnp.asarray(part, F32).reshape(-1, *params[name].shape)
        for name, part in zip(names, parts, strict=True)
    }
    floats = {name: jnp.asarray(w, F32) for name, w in params.items()}
    slopes = alignments(floats, x, labels, shaped, logit_scale, activations)  # (directions, batch)
    slopes = slopes if weight is None else slopes * weight
    codes = keep_terns(slopes.sum(1), (slopes * slopes).sum(1), score)
    moves = -jnp.asarray(codes, I32) @ jnp.asarray(noise, I32)  # (weights,): all are summed
    new = {}
    for name, move in zip(names, jnp.split(moves, np.cumsum(sizes)[:-1]), strict=True):
        moved = params[name].astype(I32) + move.reshape(params[name].shape)
        new[name] = jnp.clip(moved, -1, 1).astype(I8)  # once
    return new, codes


def jvp_batch(
    fn: Callable[..., Array], primals: Sequence[Array], tangents: Sequence[Array]
) -> tuple[Array, Array]:
    """Return a function's value, and its slopes along directions, which are in front."""
    return fn(*primals), jax.vmap(lambda *t: jax.jvp(fn, primals, t)[1])(*tangents)
