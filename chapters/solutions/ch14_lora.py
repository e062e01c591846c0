# %% [markdown]
# # Solutions: fine-tuning in four bits

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import re
from pathlib import Path

import numpy as np

from minibit.experiments.lora import small_base
from minibit.language import draw_batch, evaluate_loss
from minibit.lora import LoRALinear, PagedAdam, init_adapters, lora_linear, with_adapters
from minibit.nf4 import quantize_nf4
from minibit.tape import Adam, grad, vjp
from minibit.transformer import forward
from minibit.transformer.blocks import token_loss

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** $y = x W^T + s\,(x A^T) B^T$. The gradient of $B$ is $s\,c^T (x A^T)$, that of $A$ is
# $s\,(c B)^T x$. Each holds the *other* matrix as a factor. With $A$ zero, $A$ has a gradient at
# first and $B$ none. With both zero neither has, ever: it is a saddle that nothing leaves.

# %%
x, w, target = (rng.standard_normal(shape) for shape in ((16, 6), (4, 6), (16, 4)))
random = {"A": rng.standard_normal((2, 6)), "B": rng.standard_normal((4, 2))}


def loss(pair):
    """Squared error of a linear layer with an adapter."""
    return np.sum((x @ w.T + (x @ pair["A"].T) @ pair["B"].T - target) ** 2)


for zero in ({"B"}, {"A"}, {"A", "B"}):
    pair = {name: np.zeros_like(m) if name in zero else m for name, m in random.items()}
    gradient = grad(loss)(pair)
    moving = {name for name in pair if gradient[name].any()}
    print(f"zero at first: {sorted(zero)}; has a gradient: {sorted(moving)}")
    assert moving == (zero if len(zero) == 1 else set())

# %% [markdown]
# **2.** At the start only $B$ moves, by $\eta s\,c^T x A^T$. What the product gains is
# $s \cdot \eta s\, c^T x\,A^T A$. With entries of $A$ that do not depend on $r$, $A^T A$ is a sum
# of $r$ like terms: the change grows as $s^2 r$. For $s = \alpha / r$ that is $\alpha^2 / r$ and
# shrinks; for $s = \alpha / \sqrt r$ it is $\alpha^2$, whatever the rank.

# %%
ranks = np.array([16, 64, 256])
sizes = {False: [], True: []}
w0 = np.zeros((32, 512))
c, token = rng.standard_normal((1, 32)), rng.standard_normal((1, 512))
for stabilised, rows in sizes.items():
    for r in ranks:
        sizes_of = []
        for _ in range(30):
            A = rng.uniform(-1, 1, (r, 512)) / np.sqrt(512)
            layer = LoRALinear(w0, A, np.zeros((32, r)), rank_stabilized=stabilised)
            step = layer.scaling * c.T @ (token @ A.T)  # the gradient of B
            sizes_of.append(np.linalg.norm(layer.scaling * step @ A @ token.T))  # of the outputs
        rows.append(np.mean(sizes_of))
    print("alpha / sqrt r" if stabilised else "alpha / r     ", np.round(rows, 2))
slope = {key: np.polyfit(np.log(ranks), np.log(rows), 1)[0] for key, rows in sizes.items()}
assert -1.1 < slope[False] < -0.9
assert -0.1 < slope[True] < 0.1

# %% [markdown]
# **3.** The memory: a product with `tensor.dequantize().T` makes an array of floats, which the tape
# holds until the way back. With all layers on the tape at once, the base is there in float32.

# %%
tensor = quantize_nf4(rng.standard_normal((256, 256), dtype=np.float32))
h = rng.standard_normal((8, 256), dtype=np.float32)
layer = LoRALinear(
    tensor, rng.standard_normal((4, 256), dtype=np.float32), np.zeros((256, 4), np.float32)
)
floats = tensor.dequantize()
held, out = {}, {}
for name, product in {
    "packed": lambda z: np.sum(layer(z) ** 2),
    "floats": lambda z: np.sum((z @ floats.T + layer(z) - layer(z)) ** 2),
}.items():
    _, pullback = vjp(product, (h,))
    held[name], out[name] = pullback.nbytes, pullback(np.float32(1))[0]
print("bytes of the tape:", held)
np.testing.assert_allclose(out["packed"], out["floats"], rtol=1e-2, atol=1e-2)
assert held["floats"] - held["packed"] > 0.5 * floats.nbytes

# %% [markdown]
# **4.** The merged matrix is quantised again. A code that moved to a neighbour came from a weight
# that crossed a border; taking the adapter out subtracts the same change from the *neighbour's*
# value, not from the weight that was, and may fall back on either side. Where the absmax of a block
# changed, all its weights are measured anew.

# %%
adapter = LoRALinear(
    tensor,
    rng.standard_normal((8, 256), dtype=np.float32),
    rng.standard_normal((256, 8), dtype=np.float32),
    alpha=0.8,
)
change = adapter.delta()
merged = quantize_nf4(tensor.dequantize() + change)
undone = quantize_nf4(merged.dequantize() - change)
other = np.mean(undone.codes() != tensor.codes())
there = np.mean(merged.codes() != tensor.codes())
print(f"{there:.0%} of the codes moved by merging, {other:.0%} are not the old ones afterwards")
assert 0.01 < other < 0.6

# %% [markdown]
# **5.** All of it after one step, and after ten no more: a step walks through both means from end
# to end, and every page that was touched stays until the system wants the room. Handing strips back
# keeps next to nothing. Linux tells how much of a map is in memory.


# %%
def resident(address):
    """Bytes in memory of the map that holds an address, by the system's own list."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("Rss:"):
            return 1024 * int(line.split()[1])
    raise LookupError(address)


params = {"w": rng.standard_normal(1_000_000, dtype=np.float32)}
gradient = {"w": np.ones(1_000_000, np.float32)}
if Path("/proc/self/smaps").exists():
    held = {}
    for name in ("handed back", "kept"):
        with PagedAdam(params, budget=400_000) as paged:
            if name == "kept":
                paged._advise = lambda *_: None  # the call that hands a strip back
            address = np.frombuffer(paged._map, np.uint8).__array_interface__["data"][0]
            for step in range(1, 11):
                paged.step(gradient)
                held[name, step] = resident(address)
        print(
            f"{name}: {held[name, 1] / 1e6:.2f} MB after a step, {held[name, 10] / 1e6:.2f} after ten"
        )
    assert held["kept", 1] > 0.95 * paged.nbytes
    assert abs(held["kept", 10] - held["kept", 1]) < 0.02 * paged.nbytes
    assert held["handed back", 10] < 0.1 * paged.nbytes

# %% [markdown]
# **6.** On the small base of the chapter, 40 steps each at rank 8, one seed: the adapters of the
# largest matrices recover most (`up_proj`, `gate_proj` or `down_proj`), those of `k_proj` least. A
# sketch, not a ranking: kinds differ in size, and none was given a learning rate of its own.

# %%
config, base, train, validation = small_base()
before = evaluate_loss(config, base, validation)
gains = {}
for kind in sorted({name.rsplit(".", 1)[-1] for name in base if name.endswith("_proj")}):
    adam = Adam(init_adapters(base, 8, targets=[kind]), lr=1e-2)

    def adapted(pairs):
        """The model with these adapters."""
        return with_adapters(base, pairs, alpha=16)

    def text_loss(pairs, tokens, following):
        """Loss of a batch."""
        return token_loss(forward(config, adapted(pairs), tokens, linear=lora_linear), following)

    for step in range(40):
        adam.step(grad(text_loss)(adam.params, *draw_batch(train, 1000, step, 16, 64)))
    after = evaluate_loss(config, adapted(adam.params), validation, linear=lora_linear)
    gains[kind] = before - after
    count = sum(a.size for pair in adam.params.values() for a in pair.values())
    print(f"{kind:10} {count:6,} numbers: {gains[kind]:.3f} nats won of {before:.3f}")
assert min(gains.values()) > 0
assert max(gains, key=gains.get) in ("up_proj", "gate_proj", "down_proj", "o_proj", "v_proj")
assert gains["k_proj"] < max(gains.values())
