# %% [markdown]
# # Solutions: a language model in blocks

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
from unittest import mock

import numpy as np

from minibit.absmean import fake_quant_activation
from minibit.language import (
    LINEAR,
    evaluate_loss,
    loss_and_gradient,
    recipe,
    shipped_text,
    train_params,
)
from minibit.tape import vjp
from minibit.transformer import init_params, model
from minibit.transformer.attend import causal_attention, positions, rotate

rng = np.random.default_rng(0)
vocabulary, train, validation = shipped_text()

# %% [markdown]
# **1.** The rows of `q_proj` and `k_proj`, within each head: row $i$ goes to place $2i$ and row
# $i + d/2$ to place $2i + 1$. Queries and keys are then permuted alike, and a product of the two
# does not notice. Values are not rotated and stay as they are. (GGUF files of llama.cpp are
# permuted in this way.)

# %%
d, length = 8, 5
q, k = rng.standard_normal((2, 1, length, 1, d))
order = np.stack([np.arange(d // 2), np.arange(d // 2) + d // 2], axis=1).ravel()  # 0 4 1 5 ...
angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)  # (length, d / 2)


def rotate_neighbours(x):
    """Turn the pairs (2 i, 2 i + 1)."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


at = positions(1, length, d)
halves = np.einsum("bthd,bshd->ts", rotate(q, at), rotate(k, at))
pairs = np.einsum(
    "bthd,bshd->ts", rotate_neighbours(q[..., order]), rotate_neighbours(k[..., order])
)
np.testing.assert_allclose(pairs, halves, atol=1e-6)
assert (
    np.abs(np.einsum("bthd,bshd->ts", rotate_neighbours(q), rotate_neighbours(k)) - halves).max()
    > 0.1
)

# %% [markdown]
# **2.** It falls far below what a causal model can reach, as each token is asked for the next one
# and sees it. The model learns to copy. When it writes, there is no next token to copy, and its
# loss there is worse than a guess. Here 200 batches each:

# %%
small = recipe("55k", "float", steps=200, warmup=20)
config, start = small.config(len(vocabulary)), init_params(small.config(len(vocabulary)), 0)


def unmasked(q, k, v, *, future=None):
    """Attention to all tokens, later ones too."""
    return causal_attention(q, k, v)


causal, losses = train_params(small, start, train, 0)
with mock.patch.object(model, "causal_attention", unmasked):
    cheat, cheat_losses = train_params(small, start, train, 0)
last, cheat_last = losses[-20:].mean(), cheat_losses[-20:].mean()
honest, caught = (evaluate_loss(config, params, validation[:20_000]) for params in (causal, cheat))
print(f"training loss with the mask {last:.2f}, without {cheat_last:.2f}")
print(f"with the mask, on held-out text: {honest:.2f}, and {caught:.2f} if trained without")
assert cheat_last < last - 0.5
assert caught > honest + 0.5

# %% [markdown]
# **3.** `test_the_pieces_are_those_of_layers`, which compares with `layers.squared_relu`. SiLU is
# nowhere exactly zero but at 0: half of the gates of squared ReLU are, and more once the product is
# rounded to int8, where chapter 12 finds weights that need not be read.

# %%
gate, up = rng.standard_normal((2, 200, 512)).astype(np.float32)
zeros = {}
for name, y in {
    "squared ReLU": np.maximum(gate, 0) ** 2 * up,
    "SiLU": gate / (1 + np.exp(-gate)) * up,
}.items():
    zeros[name] = np.mean(y == 0), np.mean(fake_quant_activation(y) == 0)
    print(f"{name:13} zeros: {zeros[name][0]:.0%}, in int8 {zeros[name][1]:.0%}")
assert 0.48 < zeros["squared ReLU"][0] < 0.52
assert zeros["SiLU"][0] == 0
assert zeros["squared ReLU"][1] > 0.55 > zeros["SiLU"][1]

# %% [markdown]
# **4.** A sketch: 60 batches of the recipe, eight layers, one seed. So early the model without
# sub-norms is a little ahead. Whether they matter at the end takes the whole recipe and some seeds:
# `minibit train-language` has both.

# %%
ends = {}
for sub_norms in (True, False):
    deep = recipe("55k", "b1.58", layers=8, sub_norms=sub_norms, steps=60, warmup=10)
    first = init_params(deep.config(len(vocabulary)), 0)
    _, losses = train_params(deep, first, train, 0)
    ends[sub_norms] = losses[-10:].mean()
    print(
        f"sub-norms {sub_norms!s:5}: loss {losses[0]:.2f}, batches 50 to 60 {ends[sub_norms]:.3f}"
    )
assert max(ends.values()) < np.log(len(vocabulary))
assert 0 < ends[True] - ends[False] < 0.5

# %% [markdown]
# **5.** The product of a rotated query and a rotated key depends on their distance alone, and each
# key's own position never changes. So a key is rotated once, by its position, when it comes.

# %%
far = [rotate(x, positions(1, length, d, start=start)) for start in (0, 100) for x in (q, k)]
near, later = (np.einsum("bthd,bshd->ts", *pair) for pair in (far[:2], far[2:]))
np.testing.assert_allclose(near, later, atol=1e-3)
piece = rotate(k[:, 3:4], positions(1, 1, d, start=3))  # token 3, when it came
np.testing.assert_allclose(piece, rotate(k, at)[:, 3:4], atol=1e-6)

# %% [markdown]
# **6.** $o = \sum_s p_s v_s$ with $p = \mathrm{softmax}(s)$, so
# $\dot p_s = p_s (\dot s_s - \sum_r p_r \dot s_r)$. Then $\dot o = \sum_s p_s \dot s_s v_s -
# (\sum_r p_r \dot s_r) \sum_s p_s v_s + p \dot v$, and the sum in the middle is $o$. The usual rule
# subtracts inside, from the matrix of weights (tokens by tokens); reverse mode then holds and
# passes one such matrix more for each head.


# %%
def plain_attention(q, k, v):
    """The same, out of rules of single operations."""
    s = q @ np.swapaxes(k, -1, -2) * (1 / np.sqrt(q.shape[-1]))
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)) @ v


arguments = tuple(rng.standard_normal((3, 2, 4, 128, 16)).astype(np.float32))
bytes_of = {}
for name, attention in (("own rule", causal_attention), ("single rules", plain_attention)):
    out, pullback = vjp(attention, arguments)
    bytes_of[name] = pullback.nbytes
    found = pullback(np.ones_like(out))
    if name == "own rule":
        expected = found
    print(f"{name}: the tape holds {pullback.nbytes / 1e6:.2f} MB")
for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-4)
assert bytes_of["own rule"] < bytes_of["single rules"] - 2 * 4 * 128 * 128 * 4  # one matrix a head

# %% [markdown]
# **7.** Rows of a batch never meet: the gradient is the sum of theirs, and the threads meet once
# per step. A layer waits for the one before it, forwards and backwards. Heads could be shared out,
# but only within attention, and all threads would meet after every layer.

# %%
x, y = rng.integers(0, len(vocabulary), (2, 8, 32))
loss, whole = loss_and_gradient(config, start, x, y, linear=LINEAR["float"])
parts = [
    loss_and_gradient(config, start, x[r], y[r], linear=LINEAR["float"])
    for r in (slice(4), slice(4, 8))
]
for name, g in whole.items():
    np.testing.assert_allclose(sum(part[name] for _, part in parts) / 2, g, rtol=1e-3, atol=1e-5)
assert abs(sum(value for value, _ in parts) / 2 - loss) < 1e-5
