# %% [markdown]
# # Solutions: dual numbers

# %%
from itertools import product

import numpy as np

import minibit as mb

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** $(X + \dot X\varepsilon)(Y + \dot Y\varepsilon) = XY + (\dot X Y + X \dot Y)\,\varepsilon +
# \dot X \dot Y\,\varepsilon^2$, and $\varepsilon^2 = 0$. In a difference quotient the last term is
# there, with a factor $h$ that goes to zero. A rule that kept it would be no longer linear in the
# tangent: twice the direction would not give twice the slope.

# %%
X, X_dot, Y, Y_dot = rng.standard_normal((4, 3, 3))
_, tangent = mb.jvp(np.matmul, (X, Y), (X_dot, Y_dot))
np.testing.assert_allclose(tangent, X_dot @ Y + X @ Y_dot)
h = 1e-3
quotient = ((X + h * X_dot) @ (Y + h * Y_dot) - X @ Y) / h
np.testing.assert_allclose(quotient - tangent, h * X_dot @ Y_dot, atol=1e-12)
_, twice = mb.jvp(np.matmul, (X, Y), (2 * X_dot, 2 * Y_dot))
np.testing.assert_allclose(twice, 2 * tangent)

# %% [markdown]
# **2.** It plants one sign in one tangent. It cannot see what the cases cannot: a term that is
# zero, or smaller than the tolerance, at every point that the cases try; a wrong factor (it plants
# signs, so a test that compared signs alone would pass it, too); and an error at a kink, where
# differences say nothing. The first kind, planted here: the rule of `np.sin` with its sign turned
# beyond 100, which no case visits.


# %%
@mb.custom_jvp
def sine(x):
    return np.sin(x)


sine.defjvp(lambda p, t: (np.sin(p[0]), np.where(p[0] > 100, -1, 1) * np.cos(p[0]) * t[0]))
x = np.linspace(-3, 3, 50)
seen = mb.jvp(sine, (x,), (np.ones(50),))[1]
np.testing.assert_allclose(seen, np.cos(x))  # as if nothing were wrong
assert mb.derivative(sine)(101.0) == -np.cos(101.0)

# %% [markdown]
# **3.** $g = \frac{1}{2^n} \sum_v (\nabla f \cdot v)\, v = \left(\frac{1}{2^n} \sum_v v
# v^\top\right) \nabla f$. An entry of the matrix off the diagonal is the mean of $v_i v_j$: as many
# signs agree as differ, so it is 0. On the diagonal $v_i^2 = 1$. The matrix is the identity.

# %%
signs = np.array(list(product([-1.0, 1.0], repeat=4)))  # (16, 4)
np.testing.assert_array_equal(signs.T @ signs / 16, np.eye(4))
point = rng.standard_normal(4)
_, estimate = mb.forward_gradient(lambda x: np.prod(np.sin(x)), point, signs)
np.testing.assert_allclose(estimate, mb.jacfwd(lambda x: np.prod(np.sin(x)))(point))

# %% [markdown]
# **4.** $\log(1 + e^x) = \max(x, 0) + \log(1 + e^{-|x|})$, where the exponent is never positive.
# The slope $1 / (1 + e^{-x})$ is $\frac12 (1 + \tanh\frac x2)$, and a tanh does not overflow.


# %%
@mb.custom_jvp
def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


softplus.defjvp(lambda p, t: (softplus(p[0]), (1 + np.tanh(p[0] / 2)) / 2 * t[0]))
slope = mb.derivative(softplus)
assert slope(1000.0) == 1
assert slope(-1000.0) == 0
np.testing.assert_allclose(slope(0.3), 1 / (1 + np.exp(-0.3)))
np.testing.assert_allclose(mb.derivative(slope)(0.0), 1 / 4)  # it nests

# %% [markdown]
# **5.** The quick formula is $p \sum_i \dot x_i / x_i$. With one factor zero it computes
# $0 \cdot (1/0)$: a NaN and a warning, where the slope is the product of the *other* factors.

# %%
factors, moves = np.array([0.0, 2.0, 3.0]), np.ones(3)
with np.errstate(divide="ignore", invalid="ignore"):
    divided = np.prod(factors) * np.sum(moves / factors)
assert np.isnan(divided)
assert mb.jvp(np.prod, (factors,), (moves,))[1] == 2 * 3
