"""minibit in PyTorch: noise, packings, quantisers, top-K, NF4, layers, and the replay of a log.

One file that needs torch alone. It follows the contracts (docstrings, docs/log_format.md) and is
held by the package's vectors::

    minibit conform --port "python docs/ports/torch/adapter.py"

Weights are ``(n_out, n_in)``, activations ``(..., n_in)``. Quantisers compute in float32 in the
order of operations of the published code. Words of 32 bits lie in int64 tensors, which hold them
without a sign; a product of two such words would not fit, and is made of 16-bit halves. A refusal
is a ValueError that names the argument.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

F32, I64, I8, U8 = torch.float32, torch.int64, torch.int8, torch.uint8
MASK = 0xFFFFFFFF

# --- Philox4x32-10 --------------------------------------------------------------------------------

NOISE, INITIAL, UNITS, INPUTS, USER = 0, 1, 3, 4, 255
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Encrypt counters (..., 4) with keys (..., 2): ten rounds of two multiplications."""
    c0, c1, c2, c3 = counter.to(I64).unbind(-1)
    k0, k1 = key.to(I64).unbind(-1)
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)  # (..., 4)


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product, by 16-bit halves of the word: nothing passes 2**49."""
    low = (word & 0xFFFF) * multiplier
    middle = (word >> 16) * multiplier + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | (low & 0xFFFF)


def _in_range(name: str, value: int, most: int, least: int = 0) -> int:
    """Return an integer, if it lies from `least` to `most`."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie from {least} to {most}, got {value}")
    return value


def _encrypt(seed: int, step: int, block: Any, draw: Any, lane: Any) -> Tensor:
    """Words of the counters (block, draw, lane, step), which broadcast: (..., 4)."""
    _in_range("seed", seed, 2**64 - 1)
    parts = [torch.as_tensor(part, dtype=I64) for part in (block, draw, lane, step)]
    key = torch.tensor([seed & MASK, seed >> 32])
    return philox4x32(torch.stack(torch.broadcast_tensors(*parts), -1), key)


def words(seed: int, domain: int, step: int, count: int, lane: int = 0, start: int = 0) -> Tensor:
    """Words start, ..., start + count - 1 of a stream, int64 (count,)."""
    _in_range("domain", domain, 2**8 - 1)
    _in_range("step", step, MASK)
    _in_range("lane", lane, MASK)
    _in_range("start", start, 2**34)
    _in_range("count", count, 2**34 - start)
    blocks = torch.arange(start // 4, -(-(start + count) // 4))
    return _encrypt(seed, step, blocks, domain << 24, lane).reshape(-1)[start % 4 :][:count]


def uniform(seed: int, count: int, domain: int = USER, step: int = 0, lane: int = 0) -> Tensor:
    """Doubles in [0, 1): 27 bits of one word above 26 of the next."""
    high, low = words(seed, domain, step, 2 * count, lane).reshape(-1, 2).T
    return ((high >> 5) << 26 | low >> 6).to(torch.float64) / 2**53  # (count,)


def integers(seed: int, high: int, count: int, domain: int, step: int = 0, lane: int = 0) -> Tensor:
    """Integers in [0, high), up to 2**63: floor(u high / 2**64) in Python's integers."""
    _in_range("high", high, 2**63, 1)
    drawn = words(seed, domain, step, 2 * count, lane).reshape(-1, 2).tolist()
    return torch.tensor([((a << 32 | b) * high) >> 64 for a, b in drawn], dtype=I64)


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


def sparse_noise(
    seed: int,
    step: int,
    perturbation: int,
    size: int,
    density: float | int,
    blocks: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions, increasing int64, and signs, int8, of one sparse perturbation."""
    _, bits, table = noise_constants(density)
    _in_range("step", step, MASK)
    _in_range("perturbation", perturbation, MASK)
    total = -(-_in_range("size", size, 2 ** (32 + bits)) >> bits)
    chosen = torch.arange(total) if blocks is None else torch.tensor(sorted(set(blocks)), dtype=I64)
    for block in [] if blocks is None else chosen.tolist():
        _in_range("blocks", block, total - 1)
    drawn = _encrypt(seed, step, chosen, NOISE << 24, perturbation)  # (blocks, 4)
    signed = drawn[:, 0] - 2**31 << 32 | drawn[:, 1]  # u - 2**63, which orders as u does
    bounds = torch.tensor([bound - 2**63 for bound in table], dtype=I64)
    counts = torch.searchsorted(bounds, signed, right=True)  # #{j : T_j <= u}
    busy = counts.nonzero()[:, 0]
    counts, chosen, drawn = counts[busy], chosen[busy], drawn[busy, 2:]
    taken = chosen.new_full((len(busy), int(counts.max()) if len(busy) else 0), -1)
    signs, filled, draw = torch.zeros_like(taken), torch.zeros_like(counts), 0
    while bool((filled < counts).any()):
        for word in drawn.T:
            position = word >> (32 - bits)
            fresh = (filled < counts) & (taken != position[:, None]).all(1)
            row = fresh.nonzero()[:, 0]
            taken[row, filled[row]] = position[row]  # who comes first stays, sign and all
            signs[row, filled[row]] = 1 - 2 * (word[row] & 1)
            filled[row] += 1
        draw += 1
        drawn = _encrypt(seed, step, chosen, (NOISE << 24) + draw, perturbation)
    row, slot = signs.nonzero(as_tuple=True)
    positions, order = ((chosen[row] << bits) + taken[row, slot]).sort()
    inside = positions < size  # the last block is cut
    return positions[inside], signs[row, slot][order][inside].to(I8)


def initial_codes(seed: int, count: int, zeros: float | int, layer: int = 0) -> Tensor:
    """Draw a layer's weights, int8 (count,): 0 below the numerator, else the lowest bit's sign."""
    numerator = numerator_of("zeros", zeros)
    drawn = words(seed, INITIAL, 0, count, _in_range("layer", layer, MASK))
    return torch.where(drawn < numerator, 0, 1 - 2 * (drawn & 1)).to(I8)


def _subsets(seed: int, domain: int, step: int, lanes: Tensor, n: int, count: int) -> Tensor:
    """Floyd's algorithm in every lane: ``count`` distinct numbers below n, (lanes, count)."""
    if count == n:  # all: nothing is drawn
        return torch.arange(n).expand(len(lanes), n)
    blocks = torch.arange(-(-count // 2))
    drawn = _encrypt(seed, step, blocks, domain << 24, lanes[:, None])  # (lanes, blocks, 4)
    high, low = drawn.reshape(len(lanes), -1, 2)[:, :count].unbind(-1)  # (lanes, count)
    limit = torch.arange(n - count, n) + 1  # up to 2**24: no product below passes 2**57
    t = high * limit + (low * limit >> 32) >> 32  # floor(u (j + 1) / 2**64)
    for i in range(1, count):
        again = (t[:, :i] == t[:, i : i + 1]).any(1)
        t[:, i] = torch.where(again, n - count + i, t[:, i])
    return t.sort(-1).values


def draw_units(seed: int, step: int, layer: int, n_out: int, count: int) -> Tensor:
    """Distinct units of a layer, increasing int64 (count,)."""
    _in_range("count", count, _in_range("n_out", n_out, 2**24))
    _in_range("step", step, MASK)
    lanes = torch.tensor([_in_range("layer", layer, MASK)])
    return _subsets(seed, UNITS, step, lanes, n_out, count)[0]


def draw_inputs(
    seed: int, step: int, layer: int, units: Sequence[int], n_in: int, count: int
) -> Tensor:
    """Distinct inputs of each of some units, (units, count): lane 2**20 layer + unit."""
    _in_range("count", count, _in_range("n_in", n_in, 2**24))
    _in_range("step", step, MASK)
    lane = _in_range("layer", layer, 2**12 - 1) << 20
    lanes = torch.tensor([lane + _in_range("unit", unit, 2**20 - 1) for unit in units], dtype=I64)
    return _subsets(seed, INPUTS, step, lanes, n_in, count)


# --- packings -------------------------------------------------------------------------------------

TWOS = torch.tensor([0, 2, 4, 6])
THREES = torch.tensor([1, 3, 9, 27, 81])


def _digits(codes: Tensor, group: int) -> Tensor:
    """Codes plus 1 in groups, the last filled up with weight 0: int64 (groups, group)."""
    if bool((codes.abs() > 1).any()):
        raise ValueError(f"codes must be -1, 0 or 1, got {codes[codes.abs() > 1][0]}")
    flat = codes.reshape(-1).to(I64) + 1
    return torch.cat([flat, flat.new_ones(-len(flat) % group)]).reshape(-1, group)


def _check_packed(packed: Tensor, shape: tuple[int, ...], bad: Tensor) -> None:
    """Refuse packed bytes of another shape, or that no packing writes."""
    if packed.shape != shape:
        raise ValueError(f"packed must have shape {shape}, got {tuple(packed.shape)}")
    if bool(bad.any()):
        raise ValueError(f"packed holds an illegal byte at {tuple(bad.nonzero()[0].tolist())}")


def pack2(codes: Tensor) -> Tensor:
    """Pack four codes into a byte, two bits each, the first lowest."""
    return (_digits(codes, 4) << TWOS).sum(1).to(U8)


def unpack2(packed: Tensor, count: int) -> Tensor:
    """Unpack `pack2`; the 2-bit code 3 stands for no weight, and is refused."""
    _check_packed(packed, (-(-_in_range("count", count, 2**62) // 4),), _threes_in(packed))
    return ((packed.to(I64)[:, None] >> TWOS & 3).reshape(-1)[:count] - 1).to(I8)


def _threes_in(packed: Tensor) -> Tensor:
    """Mark the bytes with a 2-bit code 3."""
    return (packed & (packed >> 1) & 0x55) != 0


def pack_base3(codes: Tensor) -> Tensor:
    """Pack five codes into a byte as base-3 digits, the first lowest."""
    return (_digits(codes, 5) * THREES).sum(1).to(U8)


def unpack_base3(packed: Tensor, count: int) -> Tensor:
    """Unpack `pack_base3`; bytes above 242 are refused."""
    _check_packed(packed, (-(-_in_range("count", count, 2**62) // 5),), packed > 242)
    return ((packed.to(I64)[:, None] // THREES % 3).reshape(-1)[:count] - 1).to(I8)


def pack_bitplanes(codes: Tensor) -> Tensor:
    """Pack codes into the plane of the ones and that of the minus ones: (2, ceil(count / 8))."""
    digits = _digits(codes, 8)
    planes = torch.stack([digits == 2, digits == 0]).to(I64)
    return (planes << torch.arange(8)).sum(-1).to(U8)


def unpack_bitplanes(packed: Tensor, count: int) -> Tensor:
    """Unpack `pack_bitplanes`; a code that is both 1 and -1 is refused."""
    shape = (2, -(-_in_range("count", count, 2**62) // 8))
    _check_packed(packed, shape, packed[0] & packed[-1] if packed.ndim == 2 else packed * 0)
    bits = packed.to(I64)[..., None] >> torch.arange(8) & 1
    return (bits[0] - bits[1]).reshape(-1)[:count].to(I8)


def to_hf(codes: Tensor) -> Tensor:
    """Pack rows r, R + r, 2R + r and 3R + r into byte row r, R = ceil(n_out / 4)."""
    _digits(codes, 1)
    quarter = -(-len(codes) // 4)
    missing = codes.new_full((4 * quarter - len(codes), codes.shape[1]), -1)  # as published
    digits = torch.cat([codes, missing]).to(I64).reshape(4, quarter, -1) + 1
    return (digits << TWOS[:, None, None]).sum(0).to(U8)


def from_hf(packed: Tensor, n_out: int) -> Tensor:
    """Unpack `to_hf`; only the configuration knows n_out."""
    shape = (-(-_in_range("n_out", n_out, 2**62) // 4), packed.shape[-1])
    _check_packed(packed, shape, _threes_in(packed))
    twos = packed.to(I64) >> TWOS[:, None, None] & 3  # (4, quarter, n_in)
    return (twos.reshape(-1, packed.shape[1])[:n_out] - 1).to(I8)


# --- BitNet b1.58: absmean, absmax, straight through ----------------------------------------------

SMALLEST = 1e-5  # gamma and absmax are at least this, as float32


def _finite(name: str, x: Tensor) -> Tensor:
    """Return x as float32, if every entry is finite."""
    x = x.to(F32)
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got {x[~torch.isfinite(x)][0]}")
    return x


def _not_empty(name: str, x: Tensor) -> Tensor:
    """Return x as finite float32, if there is an entry to take the mean of."""
    if not x.numel():
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    return _finite(name, x)


def absmean_quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 and gamma = max(mean |w|, 1e-5): summed in float64, rounded once."""
    w = _not_empty("w", w)
    gamma = w.abs().mean(dtype=torch.float64).to(F32).clamp(min=SMALLEST)
    return (w * (1 / gamma)).round().clamp(-1, 1).to(I8), gamma


def absmax_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 and scale = (1 / max |x|) 127 of every token, (..., 1)."""
    x = _finite("x", x)
    absmax = torch.cat([x.abs(), x.new_full((*x.shape[:-1], 1), SMALLEST)], -1)
    scale = 1 / absmax.amax(-1, keepdim=True) * 127
    return (x * scale).round().to(I8), scale


def binary_quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of w - mean w, -1 at the mean itself, and beta = mean |w|: BitNet b1."""
    w = _not_empty("w", w)
    mean, beta = (v.mean(dtype=torch.float64).to(F32) for v in (w, w.abs()))
    return torch.where(w > mean, 1, -1).to(I8), beta


class _StraightThrough(torch.autograd.Function):
    """The second argument's value with the first one's derivative, in either mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor, y_dot: Tensor) -> Tensor:
        return x_dot.clone()


def _fake(x: Tensor, quantised: Tensor, strength: float) -> Tensor:
    """Go a share of the way to the quantised values, straight through."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    plain, quantised = x.detach(), quantised.to(x.dtype)
    value = quantised if strength == 1 else plain + strength * (quantised - plain)
    return _StraightThrough.apply(x, value)


def fake_quant_weight(w: Tensor, strength: float = 1.0) -> Tensor:
    """Weights as codes / (1 / gamma), as published, with the derivative of the identity."""
    codes, gamma = absmean_quantize(w.detach())
    return _fake(w, codes * (1 / (1 / gamma)), strength)


def fake_quant_activation(x: Tensor, strength: float = 1.0) -> Tensor:
    """Activations as codes / scale, with the derivative of the identity."""
    codes, scale = absmax_quantize(x.detach())
    return _fake(x, codes / scale, strength)


def bit_linear(x: Tensor, w: Tensor, strength: float = 1.0) -> Tensor:
    """Multiply as b1.58 trains: both sides fake-quantised."""
    return ternary_linear(fake_quant_activation(x, strength), fake_quant_weight(w, strength))


# --- layers ---------------------------------------------------------------------------------------


def _floating(x: Tensor) -> Tensor:
    """Cast integers to float32 and let floats through."""
    return x if x.is_floating_point() else x.to(F32)


def ternary_linear(x: Tensor, w: Tensor, scale: Any = None) -> Tensor:
    """y = scale * x w^T."""
    x, w = _floating(x), _floating(w)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} must fit w {tuple(w.shape)}")
    y = x @ w.to(x.dtype).T
    return y if scale is None else scale * y


def ternary_matmul_int8(x: Tensor, codes: Tensor) -> Tensor:
    """Multiply int8 codes by ternary codes, exactly: no int16 holds the int32 sums."""
    if x.shape[-1] != codes.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} must fit matrix {tuple(codes.shape)}")
    return x.to(torch.int32) @ codes.to(torch.int32).T


def ternary_matmul(x: Tensor, codes: Tensor, gamma: float = 1.0) -> Tensor:
    """Quantise tokens, multiply exactly, scale: y = z (gamma / scale), each step in float32."""
    q, scale = absmax_quantize(x)
    return ternary_matmul_int8(q, codes).to(F32) * (torch.tensor(gamma, dtype=F32) / scale)


def _normalised(x: Tensor, eps: float, centre: bool) -> Tensor:
    """x / sqrt(mean x^2 + eps) of every row; `centre` takes the mean off first."""
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    x = _floating(x)
    if x.ndim == 0 or not x.shape[-1]:
        raise ValueError(f"x must have a last axis that is not empty, got {tuple(x.shape)}")
    x = x - x.mean(-1, keepdim=True) if centre else x
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean x) / sqrt(var x + eps); the variance is divided by n."""
    return _normalised(x, eps, centre=True)


def rms_norm(x: Tensor, gain: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """gain x / sqrt(mean x^2 + eps)."""
    z = _normalised(x, eps, centre=False)
    return z if gain is None else gain * z


def relu(x: Tensor) -> Tensor:
    """max(x, 0), with derivative 0 at 0; NaN stays NaN, -0 becomes 0, unlike torch's own."""
    x = _floating(x)
    return torch.where(x <= 0, torch.zeros((), dtype=x.dtype), x)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return relu(x) * relu(x)


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """logsumexp(z) - z[label], its mean or one a label."""
    logits = _floating(logits)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(labels.shape)} must fit logits {tuple(logits.shape)}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    if bool(((labels < 0) | (labels >= logits.shape[-1])).any()):
        raise ValueError(f"labels must lie in [0, {logits.shape[-1]})")
    if reduction == "mean" and not labels.numel():
        raise ValueError("labels must not be empty for reduction 'mean'")
    picked = logits.gather(-1, labels.to(I64)[..., None])[..., 0]
    losses = torch.logsumexp(logits, -1) - picked
    return losses.mean() if reduction == "mean" else losses


def mlp(
    params: Mapping[str, Tensor],
    x: Tensor,
    logit_scale: float = 1.0,
    eps: float = 1e-5,
    activations: str = "float",
) -> Tensor:
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
            centred = z - z.mean(-1, keepdim=True)
            deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps).detach()
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


def topk_mask(x: Tensor, k: int) -> Tensor:
    """Mark the k largest magnitudes of each row; a stable sort gives ties to the lowest index."""
    if bool(torch.isnan(x).any()):
        raise ValueError("x must hold no NaN")
    _in_range("k", k, x.shape[-1], 1)
    order = torch.sort(x.detach().abs(), dim=-1, descending=True, stable=True).indices
    return torch.zeros(x.shape, dtype=torch.bool).scatter(-1, order[..., :k], True)


def block_topk_mask(x: Tensor, n: int, m: int) -> Tensor:
    """Mark the n largest magnitudes of every m neighbours."""
    if m < 1 or x.shape[-1] % m:
        raise ValueError(f"m must divide the last axis of {tuple(x.shape)}, got {m}")
    return topk_mask(x.reshape(*x.shape[:-1], -1, m), n).reshape(x.shape)


def topk_sparsify(x: Tensor, k: int, straight: bool = True, rescale: bool = False) -> Tensor:
    """Keep the k largest magnitudes of a row; the derivative passes straight, or by the mask."""
    return _sparsified(x, topk_mask(x, k), straight, rescale)


def block_topk_sparsify(
    x: Tensor, n: int, m: int, straight: bool = True, rescale: bool = False
) -> Tensor:
    """Keep the n largest magnitudes of every m neighbours; a row is rescaled as a whole."""
    return _sparsified(x, block_topk_mask(x, n, m), straight, rescale)


def _sparsified(x: Tensor, mask: Tensor, straight: bool, rescale: bool) -> Tensor:
    """Zeros, +0, where the mask has none; divided by the row's length if that is wanted."""
    y = torch.where(mask, x, torch.zeros((), dtype=x.dtype))
    y = _StraightThrough.apply(x, y.detach()) if straight else y
    return y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-12) if rescale else y


def topk_quantize(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Int8 codes of the k largest entries, chosen by x and not by its codes, and scales."""
    return absmax_quantize(topk_sparsify(_finite("x", x), k))


# --- NF4 ------------------------------------------------------------------------------------------

NF4_CODE = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=F32,
)
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TINY = 1e-38  # what divides a block is at least this, as float32


def nearest_code(s: Tensor, codebook: Tensor = NF4_CODE) -> Tensor:
    """Count the midpoints that a value exceeds: one at a midpoint has the lower code."""
    midpoints = (codebook[:-1] + codebook[1:]) / 2
    return torch.bucketize(s.to(F32).contiguous(), midpoints).to(U8)


@cache
def dynamic_map() -> Tensor:
    """Return the codebook of the absmaxes: midpoints of 7 decades, both signs, 0 and 1."""
    edges = [torch.linspace(0.1, 1, 2**i + 1) for i in range(7)]
    magnitudes = [10.0 ** (i - 6) * ((e[:-1] + e[1:]) / 2) for i, e in enumerate(edges)]
    positive = torch.cat(magnitudes)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


def quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the absmaxes less their mean, the absmax of each 256 of them, and the mean."""
    offset = absmax.mean()  # in torch's own order of summation: it is part of the format
    if not bool(torch.isfinite(offset)):
        raise ValueError(f"absmax must have a finite mean, got {offset}")
    rows = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
    nested = rows.abs().amax(1)
    s = rows * (1 / nested)[:, None]  # 0 / 0 where all differences are 0: code 0, as the peers
    codes = torch.where(torch.isnan(s), 0, nearest_code(s, dynamic_map()))
    return codes.reshape(-1)[: len(absmax)], nested, offset


def dequantize_absmax(codes: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """Undo `quantize_absmax`."""
    return dynamic_map()[codes.long()] * nested.repeat_interleave(256)[: len(codes)] + offset


def quantize_nf4(w: Tensor, block: int = 64, double_quant: bool = False) -> dict[str, Any]:
    """Pack weights into 4 bits: the first code of a byte in its high half.

    Returns packed, absmax, shape and block; with double quantisation nested_codes, nested_absmax
    and offset, too, and the absmax that they give.
    """
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {BLOCKS}, got {block}")
    flat = _not_empty("w", w).reshape(-1)
    full = len(flat) - len(flat) % block
    whole, tail = flat[:full].reshape(-1, block), flat[full:]
    absmax = whole.abs().amax(1)
    s = (whole * (1 / absmax.clamp(min=TINY))[:, None]).reshape(-1)
    if len(tail):  # a shorter last block divides, and keeps the clamped value
        last = tail.abs().amax().clamp(min=TINY)[None]
        absmax, s = torch.cat([absmax, last]), torch.cat([s, tail / last])
    codes = nearest_code(s.clamp(-1, 1))
    codes = torch.cat([codes, codes.new_full((len(codes) % 2,), 7)])  # a lone code meets a zero
    tensor = {"packed": codes[0::2] << 4 | codes[1::2], "shape": tuple(w.shape), "block": block}
    if double_quant:
        nested = quantize_absmax(absmax)
        tensor |= dict(zip(("nested_codes", "nested_absmax", "offset"), nested, strict=True))
        absmax = dequantize_absmax(*nested)
    return {**tensor, "absmax": absmax}


def dequantize_nf4(tensor: Mapping[str, Any]) -> Tensor:
    """Return the weights: one float32 product each."""
    packed, size = tensor["packed"].long(), math.prod(tensor["shape"])
    codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[:size]
    absmax = tensor["absmax"].repeat_interleave(tensor["block"])[:size]
    return (NF4_CODE[codes] * absmax).reshape(tensor["shape"])


# --- a log and its replay (docs/log_format.md) ----------------------------------------------------


class LogError(ValueError):
    """A log is damaged, or says what no log says; `offset` is the byte."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (byte {offset})")
        self.offset = offset


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that comes twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key of {[key for key, _ in pairs]} comes twice")
    return dict(pairs)


def _double(text: str) -> float:
    """Refuse NaN and infinities, which are no JSON, and what no double holds."""
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _has_hole(data: bytes, start: int, stop: int) -> bool:
    """Whether a sector of 512 bytes that holds bytes start to stop is all zeros."""
    sectors = range(start // 512 * 512, stop, 512)
    return not all(any(data[max(start, at) : at + 512]) for at in sectors)


def read_log(data: bytes) -> tuple[dict[str, Any], list[tuple[int, int, bytes, bytes]], int | None]:
    """Return the header, records (offset, steps, payload, digest), and where the file is torn."""
    magic = b"\x89MBL\r\n\x1a\n"
    if data[:8] != magic[: len(data)]:
        raise LogError("no log", 0)
    if len(data) < 14:
        raise LogError("the header is cut", len(data))
    version, length = struct.unpack_from("<HI", data, 8)
    if version != 1:
        raise LogError(f"version {version}, not 1", 8)
    if length > 1 << 20:
        raise LogError("the header is longer than 2**20 bytes", 10)
    at = 14 + length
    if len(data) < at + 4:
        raise LogError("the header is cut", len(data))
    crc = zlib.crc32(data[:at])
    if crc.to_bytes(4, "little") != data[at : at + 4]:
        raise LogError("the header is damaged", 14)
    try:
        text = data[14:at].decode()  # of bytes, `loads` would take UTF-16, too
        numbers = {"parse_float": _double, "parse_constant": _double}
        header = json.loads(text, object_pairs_hook=_unique, **numbers)
        _check_plan(header["plan"])
    except (ValueError, KeyError, TypeError) as error:
        raise LogError(f"the header: {error}", 14) from None
    records, at = [], at + 4
    while at < len(data):
        if len(data) - at < 7:
            return header, records, at
        steps, length, check = struct.unpack_from("<BIH", data, at)
        if zlib.crc32(data[at : at + 5], crc) & 0xFFFF != check:
            if _has_hole(data, at, at + 7):
                return header, records, at
            raise LogError("a record's head is damaged", at)
        stop = at + 7 + length + 8
        if stop + 4 > len(data):
            return header, records, at
        after = zlib.crc32(data[at:stop], crc)
        if after.to_bytes(4, "little") != data[stop : stop + 4]:
            hole = len(data) - at <= 65536 and _has_hole(data, at, stop + 4)
            if stop + 4 == len(data) or hole:
                return header, records, at
            raise LogError("a record is damaged", at)
        if not 1 <= steps <= 32:
            raise LogError(f"a record of {steps} steps", at)
        records.append((at, steps, data[at + 7 : stop - 8], data[stop - 8 : stop]))
        crc, at = after, stop + 4
    return header, records, None


def _check_plan(plan: Mapping[str, Any]) -> None:
    """Refuse a plan that no step can be drawn by."""
    shapes, names, method = plan["shapes"], plan["names"], plan["method"]
    laws = {
        "method is sampled or units": method in ("sampled", "units"),
        "seed lies below 2**64": 0 <= plan["seed"] < 2**64,
        "zeros lie in [0, 2**32]": 0 <= plan["zeros"] <= 2**32,
        "names are distinct, each with a shape": 0 < len(names) == len(set(names)) == len(shapes),
        "sides are at least 1": all(n >= 1 for shape in shapes for n in shape),
        "weights are at most 2**28": sum(map(math.prod, shapes)) <= 2**28,
        "a step has codes": method != "sampled" or plan["perturbations"] > 0,
        "units and inputs lie within the shapes": method == "sampled" or _drawable(plan),
    }
    for law, holds in laws.items():
        if not holds:
            raise ValueError(f"its plan breaks: {law}")


def _drawable(plan: Mapping[str, Any]) -> bool:
    """Whether units and inputs can be drawn from every layer."""
    shapes, units, inputs = plan["shapes"], plan["units"], plan["inputs"]
    if not len(units) == len(inputs) == len(shapes) or any(len(shape) != 2 for shape in shapes):
        return False
    layers = zip(shapes, units, inputs, strict=True)
    return all(
        0 <= u <= n_out <= 2**20 and 0 <= i <= n_in <= 2**24 for (n_out, n_in), u, i in layers
    )


class BitReader:
    """Codes off a payload, bits from the highest of a byte to the lowest."""

    def __init__(self, payload: bytes) -> None:
        self.bits, self.at = "".join(f"{byte:08b}" for byte in payload), 0

    def number(self, count: int) -> int:
        """Read `count` bits."""
        self.at += count
        if self.at > len(self.bits):
            raise ValueError("the codes go past the payload's end")
        return int("0" + self.bits[self.at - count : self.at], 2)

    def gamma(self) -> int:
        """Read n zeros, then a number of n + 1 bits that begins with a one."""
        n = 0
        while self.number(1) == 0:
            n += 1
        return (1 << n) + self.number(n)

    def uniform(self, size: int) -> int:
        """Read a number below `size`; the smallest take a bit less."""
        bits = (size - 1).bit_length()
        if not bits:
            return 0
        short, x = (1 << bits) - size, self.number(bits - 1)
        return x if x < short else 2 * x + self.number(1) - short

    def subset(self, count: int, size: int) -> list[int]:
        """Read increasing positions below `size`, gap by gap."""
        positions: list[int] = []
        start = 0
        for k in range(count, 0, -1):
            room = size - start - k + 1
            m = room if k == 1 else max(1, (7 * room + 5 * k) // (10 * k))
            q = 0
            while q < (room - 1) // m and self.number(1) == 0:
                q += 1
            positions.append(start + q * m + self.uniform(min(m, room - q * m)))
            start = positions[-1] + 1
        return positions

    def close(self) -> None:
        """Refuse a payload that goes on: fewer than eight bits are left, all zero."""
        if len(self.bits) - self.at > 7 or "1" in self.bits[self.at :]:
            raise ValueError("bits follow the last code")


Moves = tuple[Tensor, Tensor]  # positions among all weights, and what is added there
Step = Callable[[int, int], Iterator[Moves]]  # of a seed and a number


def steps_of(plan: Mapping[str, Any], payload: bytes, count: int) -> list[Step]:
    """Read a record's steps; each tells its moves once it knows the seed and number to draw by."""
    sizes = [math.prod(shape) for shape in plan["shapes"]]
    if plan["method"] == "sampled":
        (numerator,) = struct.unpack_from("<I", payload.ljust(4, b"\0"))
        bits, codes = BitReader(payload[4:]), range(plan["perturbations"])
        read = [[bits.number(1) and 1 - 2 * bits.number(1) for _ in codes] for _ in range(count)]
        bits.close()
        return [_sampled(codes, sum(sizes), numerator) for codes in read]
    bits, steps = BitReader(payload), []
    ranges = [(bits.gamma() - 1, bits.gamma()) for _ in sizes]
    for _ in range(count):
        layers = []
        for layer, (least, span) in enumerate(ranges):
            candidates = plan["units"][layer] * plan["inputs"][layer]
            moves = _in_range("moves", least + bits.uniform(span), candidates)
            positions = bits.subset(moves, candidates)
            layers.append((positions, [1 - 2 * bits.number(1) for _ in positions]))
        steps.append(_of_units(plan, layers))
    bits.close()
    return steps


def _sampled(codes: list[int], size: int, numerator: int) -> Step:
    """Minus each code times its perturbation."""

    def moves(seed: int, number: int) -> Iterator[Moves]:
        for i, code in enumerate(codes):
            if code:
                positions, signs = sparse_noise(seed, number, i, size, numerator)
                yield positions, -code * signs.to(I64)

    return moves


def _of_units(plan: Mapping[str, Any], layers: list[tuple[list[int], list[int]]]) -> Step:
    """Candidate q is input q mod `inputs` of unit q div `inputs`, among the drawn."""

    def moves(seed: int, number: int) -> Iterator[Moves]:
        starts = accumulate(map(math.prod, plan["shapes"]), initial=0)
        sides = zip(starts, plan["shapes"], plan["units"], plan["inputs"], layers, strict=False)
        for layer, (start, (n_out, n_in), units, inputs, (positions, signs)) in enumerate(sides):
            drawn = draw_units(seed, number, layer, n_out, units)
            candidates = torch.tensor(positions, dtype=I64)
            rows = draw_inputs(seed, number, layer, drawn.tolist(), n_in, inputs)
            row = candidates // max(inputs, 1)
            yield (
                start + drawn[row] * n_in + rows[row, candidates % max(inputs, 1)],
                torch.tensor(signs, dtype=I64),
            )

    return moves


def initial_weights(plan: Mapping[str, Any]) -> Tensor:
    """All initial weights, layer after layer, int8."""
    sizes = map(math.prod, plan["shapes"])
    parts = [initial_codes(plan["seed"], n, plan["zeros"], layer) for layer, n in enumerate(sizes)]
    return torch.cat(parts)


def digest(weights: Tensor) -> str:
    """SHA-256 of all weights, int8, layer after layer."""
    return hashlib.sha256(bytes(weights.view(U8).tolist())).hexdigest()


def replay(data: bytes) -> tuple[dict[str, Any], list[Tensor], int | None]:
    """Return the header, the weights before the first step and after each, and where it is torn."""
    header, records, torn = read_log(data)
    plan = header["plan"]
    weights = initial_weights(plan)
    segments = header.get("segments", [])
    drawn_by = [(seed, first + i) for seed, first, count in segments for i in range(count)]
    history, number = [weights.clone()], 0
    for offset, count, payload, stored in records:
        try:
            steps = steps_of(plan, payload, count)
        except ValueError as error:
            raise LogError(f"a record cannot be read: {error}", offset) from None
        for step in steps:
            named = drawn_by[number] if number < len(drawn_by) else (plan["seed"], number)
            sums = torch.zeros(len(weights), dtype=I64)
            for positions, moves in step(*named):
                sums.index_add_(0, positions, moves)
            weights = (weights + sums).clamp(-1, 1).to(I8)  # once, when all moves are summed
            number += 1
            history.append(weights.clone())
        if bytes.fromhex(digest(weights))[:8] != stored:
            raise LogError("the weights after a record have another digest", offset)
    return header, history, torn
