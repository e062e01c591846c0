# %% [markdown]
# # Solutions: reverse mode out of forward mode

# %%
import numpy as np

from minibit.dual import jacfwd, jvp
from minibit.tape import Adam, grad, vjp
from minibit.tape.recorder import Tape
from minibit.tape.transposes import fit

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** Entry $i$ is in the sums $i, i + 1, \dots$ So its cotangent is the sum of theirs: a
# cumulative sum from the other end.

# %%
x, c = rng.standard_normal((2, 6))
_, pullback = vjp(np.cumsum, (x,))
np.testing.assert_allclose(pullback(c)[0], np.cumsum(c[::-1])[::-1])
v = rng.standard_normal(6)
np.testing.assert_allclose(c @ np.cumsum(v), pullback(c)[0] @ v)  # <c, A v> = <A^T c, v>

# %% [markdown]
# **2.** Any function in which a variable is used twice: the second contribution replaces the first.
# In `layer` each variable of the program is used by one later line only: $\dot x$ and $\dot w$ by
# one product each, and each sum by the next line.


# %%
def backwards(function, arguments, forget):
    """The loop of the chapter; with `forget`, a cotangent is replaced in place of added to."""
    tape = Tape()
    recorders = tuple(tape.variable(a.shape, a.dtype) for a in arguments)
    _, last = jvp(function, arguments, recorders)
    c = [np.zeros(line.shape) for line in tape.program]
    c[last.number] = np.ones(())
    for k in reversed(range(len(tape.program))):
        for j, transpose, arrays in tape.program[k].terms:
            piece = fit(transpose(c[k], c[j].shape, False, *arrays), c[j].shape, c[j].dtype)
            c[j] = piece if forget else c[j] + piece
    return c[: len(arguments)]


def layer(x, w):
    return np.sum(np.tanh(x @ w.T) ** 2) / 2


def twice(x):
    return np.sum(np.sin(x) * np.exp(x))


a, w = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
for kept, forgot in zip(
    backwards(layer, (a, w), False), backwards(layer, (a, w), True), strict=True
):
    np.testing.assert_allclose(kept, forgot)
(right,), (wrong,) = (backwards(twice, (x,), forget) for forget in (False, True))
np.testing.assert_allclose(right, grad(twice)(x))
assert np.abs(wrong - right).max() > 0.1

# %% [markdown]
# **3.** The sum of both rows of the cotangent. In NumPy `out[index] += c` would keep the last one.

# %%
table, cotangent = rng.standard_normal((5, 2)), rng.standard_normal((3, 2))
_, pullback = vjp(lambda t: t[np.array([3, 1, 3])], (table,))
(back,) = pullback(cotangent)
np.testing.assert_allclose(back[3], cotangent[0] + cotangent[2])
kept = np.zeros((5, 2))
kept[[3, 1, 3]] += cotangent
np.testing.assert_array_equal(kept[3], cotangent[2])  # the trap

# %% [markdown]
# **4.** Both below. With `jvp` outside, the gradient's tape is made once, and its arrays carry a
# tangent along: one tape. With `grad` outside, a tape is kept of a computation that keeps a tape
# itself if the inner derivative is a gradient. (A `jvp` inside keeps none: the third line is the
# cheap one.)


# %%
def f(x):
    return np.sum(np.sin(x) * np.roll(x, 1) ** 2)


def hvp(f, x, v):
    return jvp(grad(f), (x,), (v,))[1]


def hvp_of_two_tapes(f, x, v):
    return grad(lambda x: np.sum(grad(f)(x) * v))(x)


def hvp_inside(f, x, v):
    return grad(lambda x: jvp(f, (x,), (v,))[1])(x)


hessian = jacfwd(grad(f))(x)
for way in (hvp, hvp_of_two_tapes, hvp_inside):
    np.testing.assert_allclose(way(f, x, v), hessian @ v)
bytes_of = {
    "grad of grad": vjp(lambda x: np.sum(grad(f)(x) * v), (x,))[1].nbytes,
    "grad of jvp": vjp(lambda x: jvp(f, (x,), (v,))[1], (x,))[1].nbytes,
    "grad alone": vjp(f, (x,))[1].nbytes,
}
print("bytes of the outer tape:", bytes_of)
assert bytes_of["grad of grad"] > bytes_of["grad alone"]

# %% [markdown]
# **5.** At $t = 1$: $m / (1 - \beta_1) = g$ and $v / (1 - \beta_2) = g^2$. So the move is
# $\eta\,g / (|g| + \epsilon)$: of length $\eta$ as long as $|g|$ is far above $\epsilon$. A
# gradient of $10^{-9}$ beside $\epsilon = 10^{-8}$ moves by $\eta / 11$: $\epsilon$ decides which
# gradients count as zero.

# %%
g = np.array([3e4, -2.0, 1e-4, 1e-9])
move = -Adam({"w": np.zeros(4)}, lr=0.1).step({"w": g})["w"]
print("moves over the learning rate:", (move / 0.1).round(4))
np.testing.assert_allclose(move, 0.1 * g / (np.abs(g) + 1e-8))
np.testing.assert_allclose(move[3], 0.1 / 11)

# %% [markdown]
# **6.** Then the decay is part of what is divided by $\sqrt v$: weights with large gradients decay
# least, whatever their size. Beside the gradient, all decay by the same share.

# %%
weights, decay, lr = np.array([1.0, 1.0]), 0.1, 0.01
slopes = np.array([0.01, 10.0])  # alternating in sign, so that they move nothing in the mean
beside = Adam({"w": weights}, lr=lr, weight_decay=decay)
inside = Adam({"w": weights}, lr=lr)
for step in range(200):
    sign = (-1) ** step
    beside.step({"w": sign * slopes})
    inside.step({"w": sign * slopes + decay * inside.params["w"]})
lost = {"beside": 1 - beside.params["w"], "inside": 1 - inside.params["w"]}
for name, each in lost.items():
    print(f"{name}: the weight with small slopes lost {each[0]:.3f}, with large ones {each[1]:.3f}")
assert lost["inside"][0] > 10 * lost["inside"][1]
assert abs(lost["beside"][0] - lost["beside"][1]) < 0.02
