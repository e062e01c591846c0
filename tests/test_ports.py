"""The ports of docs/ports: each conforms in what it offers; broken copies are told their bug."""

import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import minibit
from minibit.conformance.conforming import all_cases, examine
from minibit.conformance.ports import Port

PORTS = Path(__file__).resolve().parents[1] / "docs" / "ports"
NODE = shutil.which("node")
RUSTC = shutil.which("rustc")
JAVASCRIPT = pytest.param(
    "js",
    marks=pytest.mark.skipif(NODE is None, reason="node is not installed"),
)
TORCH = pytest.param(
    "torch",
    marks=[
        pytest.mark.peers,
        pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch: [peers]"),
    ],
)
RUST = pytest.param(
    "rust",
    marks=pytest.mark.skipif(RUSTC is None, reason="rustc is not installed"),
)
JAX = pytest.param(
    "jax",
    marks=[
        pytest.mark.peers,
        pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax: [peers]"),
    ],
)
FILES = {
    "jax": "minibit_jax.py",
    "js": "minibit.mjs",
    "torch": "minibit_torch.py",
    "rust": "minibit.rs",
}
RUN = {"js": [str(NODE), str(PORTS / "js/adapter.mjs")]}
RUN["jax"] = [sys.executable, str(PORTS / "jax/adapter.py")]
RUN["torch"] = [sys.executable, str(PORTS / "torch/adapter.py")]
OFFERED = {
    "js": "StepLog sparse_noise noise_constants draw_inputs initial_codes pack2 unpack_base3 "
    "from_hf absmean_quantize absmax_quantize topk_mask block_topk_mask ternary_matmul "
    "layer_norm mlp",
    "torch": "StepLog sparse_noise noise_constants draw_inputs unpack_bitplanes absmean_quantize "
    "jvp topk_sparsify topk_quantize ternary_matmul cross_entropy mlp",
}
OFFERED["js"] += " from_tq1_0 to_tq2_0 from_i2_s unpack_bitplanes binary_quantize topk_count"
OFFERED["js"] += " topk_sparsify topk_quantize cross_entropy sample forward digest"
OFFERED["js"] += " keep_terns keep_moves compact StepLog.digest"
OFFERED["jax"] = (
    "sparse_noise noise_constants draw_inputs initial_codes integers absmean_quantize "
    "fake_quant_weight absmax_quantize jvp quantize_nf4 topk_sparsify topk_quantize forward mlp "
    "ternary_matmul cross_entropy bit_linear keep_terns keep_moves"
)
OFFERED["rust"] = (
    "StepLog sparse_noise noise_constants draw_inputs initial_codes pack2 unpack_base3 "
    "unpack_bitplanes from_hf from_tq1_0 to_tq2_0 from_i2_s absmean_quantize absmax_quantize "
    "binary_quantize quantize_nf4 topk_mask block_topk_mask ternary_matmul_int8 ternary_matmul "
    "layer_norm mlp keep_terns keep_moves"
)
BROKEN = {  # what is changed in a port, and the flag of that bug
    "js": {
        "product-in-doubles": (
            "function multiplyHigh(a, b) {",
            "function multiplyHigh(a, b) {\n  return Math.floor((a * b) / WORD) >>> 0;",
        ),
        "seed-halves-swapped": (
            "[Number(whole & MASK), Number(whole >> 32n)]",
            "[Number(whole >> 32n), Number(whole & MASK)]",
        ),
        "remainder": ("| BigInt(low)) * limit) >> 64n", "| BigInt(low)) % limit)"),
        "table-of-96-bits": ("[256n, BigInt(32 * size)]", "[96n]"),
        "second-sign-kept": ("if (!entries.has(position)) entries.set", "entries.set"),
        "zero-at-tie": ("w < numerator ?", "w <= numerator ?"),
        "lane-without-layer": ("const lane = layer * 2 ** 20 + unit;", "const lane = unit;"),
        "wrong-power": ("[1, 3, 9, 27, 81]", "[1, 3, 9, 27, 27]"),
        "code-3": ("byte & (byte >> 1) & 0x55", "byte & 0"),
        "half-away": (
            "return x + 6755399441055744 - 6755399441055744",
            "return Math.sign(x) * Math.round(Math.abs(x))",
        ),
        "divides-by-gamma": ("rint(f32(x * inverse))", "rint(f32(x / gamma))"),
        "one-division": ("f32(f32(1 / token", "f32(127 * f32(1 / token"),
        "highest-index": (": i - j;", ": j - i;"),
        "largest-values": (
            "const a = Math.abs(x[i]), b = Math.abs(x[j]);",
            "const a = x[i], b = x[j];",
        ),
        "eps-outside-the-root": ("/ Math.sqrt(variance + eps)", "/ (Math.sqrt(variance) + eps)"),
        "relu-before-rounding": ("h = rounded(h, nOut)", "h = rounded(relu(h), nOut)"),
        "last-hidden-rounded": ("layer < layers.length - 2", "layer < layers.length - 1"),
        "sums-in-int16": ("new Int32Array(Math", "new Int16Array(Math"),
        "gamma-inverted": ("f32(f32(gamma) / scale[row])", "f32(1 / f32(gamma * scale[row]))"),
        "seed-of-plan": ("[seed, first + left]", "[plan.seed, first + left]"),
        "offset-zero": ("    start += sizes[layer];\n", ""),
        "inputs-a-layer": ("layer, unit, nIn, wanted)", "layer, units[0], nIn, wanted)"),
        "unsorted": ("return [...taken].sort((a, b) => a - b);", "return [...taken];"),
        "ratio-in-doubles": (
            "Math.floor((7 * room + 5 * k) / (10 * k))",
            "Math.round((0.7 * room) / k)",
        ),
        "torn-log-lost": (
            "if (stop + 4 > data.length) return { header, records, tornAt: at };",
            "if (stop + 4 > data.length) throw new LogError('cut', at);",
        ),
        "record-crc-not-compared": ("after !== view.getUint32(stop, true)", "false"),
        "digest-not-compared": ("!== hex(digest))", "!== hex(digest) && false)"),
        "key-twice": ("if (keys.has(name))", "if (false)"),
        "trailing-payload": ("left > 7 || this.number(left)", "false"),
        "steps-not-bounded": ("steps < 1 || steps > 32", "false"),
        "unknown-method": ('method === "sampled" || method === "units"', "true"),
        "version-not-compared": ("view.getUint16(8, true) !== 1", "false"),
    },
    "torch": {
        "sign-of-update": ("yield positions, -code *", "yield positions, code *"),
        "each-move-clamped": (
            "sums.index_add_(0, positions, moves)",
            "weights = weights.index_add(0, positions, moves.to(I8)).clamp(-1, 1)",
        ),
        "big-endian": ('"<I", payload.ljust', '">I", payload.ljust'),
        "digest-not-compared": ("[:8] != stored:", "[:8] != stored and False:"),
        "duplicates-count": (" & (taken != position[:, None]).all(1)", ""),
        "low-word-first": ("((a << 32 | b) * high)", "((b << 32 | a) * high)"),
        "signs-exchanged": ("1 - 2 * (word[row] & 1)", "2 * (word[row] & 1) - 1"),
        "highest-first": ("torch.tensor([0, 2, 4, 6])", "torch.tensor([6, 4, 2, 0])"),
        "divides-by-gamma": ("(w * (1 / gamma))", "(w / gamma)"),
        "codes-times-gamma": ("codes * (1 / (1 / gamma))", "codes * gamma"),
        "zero-slope": ("return x_dot.clone()", "return torch.zeros_like(x_dot)"),
        "mask-in-the-slope": ("_StraightThrough.apply(x, y.detach()) if straight else y", "y"),
        "in-floats": ("int((1 - share) * n // 1)", "int((1 - float(share)) * n)"),
        "slope-at-zero-is-1": ("torch.where(x <= 0", "torch.where(x < 0"),
        "sums-in-int16": (
            "x.to(torch.int32) @ codes.to(torch.int32).T",
            "(x.to(torch.int16) @ codes.to(torch.int16).T).to(torch.int32)",
        ),
        "times-scale": ("dtype=F32) / scale)", "dtype=F32) * scale)"),
    },
}
BROKEN["js"] |= {
    "rotary-interleaved": (
        "for (let at = i; at < x.length; at += width) {\n      const a = x[at], b = x[at + half];",
        "for (let at = i; at < x.length; at += width) {\n      const a = x[at], b = x[at ^ 1];",
    ),
    "gate-and-up-exchanged": ('["gate", "up"].map', '["up", "gate"].map'),
    "relu-not-squared": ("squaredRelu(gate)", "relu(gate)"),
    "heads-grouped-in-turn": (
        "Math.floor(head / (heads / kvHeads)) * width",
        "(head % kvHeads) * width",
    ),
    "scale-of-the-width": ("sum / Math.sqrt(width)", "sum / Math.sqrt(q.length)"),
    "crossing-left-out": (
        "(count === 0 || sum < wanted)",
        "(count === 0 || sum + p[order[count]] <= wanted)",
    ),
    "last-of-equals": ("z[i] < z[j] ? 1 : i - j)", "z[i] < z[j] ? 1 : j - i)"),
}
BROKEN["jax"] = {
    "nine-rounds": ("for _ in range(10):", "for _ in range(9):"),
    "key-words-swapped": (
        "k0, k1 = key[..., 0], key[..., 1]",
        "k1, k0 = key[..., 0], key[..., 1]",
    ),
    "not-clipped": (
        "jnp.clip(jnp.round(w * (1 / gamma)), -1, 1)",
        "jnp.round(w * (1 / gamma))",
    ),
    "zero-slope": ("(primals[1], tangents[0])", "(primals[1], 0 * tangents[0])"),
    "slope-at-zero-is-half": (
        "jnp.where(x <= 0, jnp.zeros((), x.dtype), x)",
        "jnp.maximum(x, jnp.zeros((), x.dtype))",
    ),
    "highest-index": (
        "jnp.argsort(~bits, axis=-1, stable=True)",
        "jnp.argsort(bits, -1)[..., ::-1]",
    ),
    "low-half-first": ("codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]"),
    "above-the-median-only": ("scores >= jnp.median(scores)", "scores > jnp.median(scores)"),
    "along-the-gradient": ("signs = -jnp.sign(alignments)", "signs = jnp.sign(alignments)"),
    "sums-in-int16": (
        "jnp.matmul(x.astype(I32), codes.astype(I32).T)",
        "jnp.matmul(x.astype(jnp.int16), codes.astype(jnp.int16).T).astype(I32)",
    ),
    "gamma-inverted": ("(np.float32(gamma) / scale)", "(1 / (np.float32(gamma) * scale))"),
    "rotary-backwards": ("b * cos + a * sin]", "b * cos - a * sin]"),
}
BROKEN["rust"] = {
    "seed-halves-swapped": (
        "[seed as u32, (seed >> 32) as u32]",
        "[(seed >> 32) as u32, seed as u32]",
    ),
    "zero-at-tie": ("u64::from(w) < zeros", "u64::from(w) <= zeros"),
    "lane-without-layer": ("let lane = lane + within", "let lane = within"),
    "half-away": (
        "let code = move |v: &f32| (v * s).round_ties_even() as i8;",
        "let code = move |v: &f32| (v * s).round() as i8;",
    ),
    "divides-by-gamma": ("(x * inverse).round", "(x / gamma).round"),
    "one-division": (
        "1.0 / row.iter().fold(SMALLEST, |most, v| most.max(v.abs())) * 127.0;",
        "127.0 / row.iter().fold(SMALLEST, |most, v| most.max(v.abs()));",
    ),
    "eps-outside-the-root": ("/ (variance + eps).sqrt()", "/ (variance.sqrt() + eps)"),
    "seed-of-plan": ("return (seed, first + left);", "return (self.seed, first + left);"),
    "offset-zero": ("start += sizes[layer];", "start += 0;"),
    "digest-not-compared": ("if digest(&weights)[..8] != *record.digest {", "if false {"),
    "trailing-payload": ("if left > 7 ||", "if false &&"),
}
COPIES = [
    pytest.param(port.values[0], flag, marks=port.marks)
    for port in (JAVASCRIPT, TORCH, JAX, RUST)
    for flag in BROKEN[port.values[0]]
]


def broken(port, flag):
    """Return the text of a port with one bug."""
    text = (PORTS / port / FILES[port]).read_text(encoding="utf-8")
    old, new = BROKEN[port][flag]
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return what starts a port, or a copy of it with one bug; Rust is compiled once for all."""
    folder = tmp_path_factory.mktemp("ports")

    @cache
    def program():
        """Build one program of all copies, each a module, which an argument chooses."""
        adapter = (PORTS / "rust/adapter.rs").read_text(encoding="utf-8")
        names = ["whole", *BROKEN["rust"]]
        for name in names:
            text = (PORTS / "rust/minibit.rs").read_text(encoding="utf-8")
            text = text if name == "whole" else broken("rust", name)
            (folder / name).mkdir()
            (folder / name / "minibit.rs").write_text(text, encoding="utf-8")
            (folder / name / "adapter.rs").write_text(adapter, encoding="utf-8")
        modules = [f'#[path = "{name}/adapter.rs"] mod m{i};' for i, name in enumerate(names)]
        arms = [f'"{name}" => m{i}::main(),' for i, name in enumerate(names)]
        choice = f"match &*std::env::args().nth(1).unwrap() {{ {' '.join(arms)} _ => panic!() }}"
        (folder / "all.rs").write_text("\n".join([*modules, f"fn main() {{ {choice} }}"]))
        rustc = [str(RUSTC), "-C", "opt-level=0", "--edition", "2021", str(folder / "all.rs")]
        subprocess.run([*rustc, "-o", str(folder / "all")], check=True)
        return str(folder / "all")

    def start(port, flag=None):
        """Return a command."""
        if port == "rust":
            return [program(), flag or "whole"]
        if flag is None:
            return RUN[port]
        copy = folder / f"{flag}{Path(FILES[port]).suffix}"
        copy.write_text(broken(port, flag), encoding="utf-8")
        return [*RUN[port], str(copy)]

    return start


@pytest.mark.parametrize("port", [JAVASCRIPT, TORCH, JAX, RUST])
def test_port_conforms(port, command):
    """No case that it offers deviates, and it offers what its page says."""
    with Port(command(port)) as asked:
        report = examine(asked.answer)
    assert report.passed, [f"{r.case.id}: {r.detail}" for r in report.smallest()]
    conforming = {result.case.call for result in report.results if result.verdict == "conforms"}
    assert set(OFFERED[port].split()) <= conforming


@pytest.mark.parametrize(("port", "flag"), COPIES)
def test_a_broken_copy_is_reported_with_the_right_hint(port, flag, command):
    """One line is changed; the report names the flag of that very bug."""
    chosen = [case for case in all_cases() if flag in case.flags]
    with Port(command(port, flag)) as asked:
        report = examine(asked.answer, chosen)
    flags = {name for result in report.results if result.deviation for name, _ in result.hints()}
    assert flag in flags, [result.detail for result in report.results]


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax: [peers]")
def test_noise_in_jax_needs_no_numbers_of_64_bits():
    """With x64 off every case of noise conforms, and so do the codes of float32 weights."""
    chosen = [case for case in all_cases() if case.module in ("noise", "absmean")]
    with Port(["env", "JAX_ENABLE_X64=0", *RUN["jax"]], seconds=60) as asked:
        report = examine(asked.answer, chosen)
    assert report.passed, [f"{r.case.id}: {r.detail}" for r in report.smallest()]
    assert report.counts(call="sparse_noise")["conforms"] >= 8


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax: [peers]")
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_step_in_jax_is_that_of_the_slopes_of_minibit(activations):
    """Its codes and weights follow from jvp of the mlp here, along the same sparse noise."""
    spec = importlib.util.spec_from_file_location("minibit_jax", PORTS / "jax" / FILES["jax"])
    port = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(port)
    rng, widths = np.random.default_rng(3), (6, 8, 8, 3)
    sides = zip(widths[1:], widths[:-1], strict=True)
    params = {
        f"w{i + 1}": rng.integers(-1, 2, shape).astype(np.int8) for i, shape in enumerate(sides)
    }
    x, labels = rng.normal(size=(5, 6)).astype(np.float32), rng.integers(0, 3, 5)
    flat, size = np.concatenate([w.ravel() for w in params.values()]), 48 + 64 + 24

    def losses(*weights):
        logits = minibit.mlp(
            dict(zip(params, weights, strict=True)), x, logit_scale=0.5, activations=activations
        )
        return minibit.cross_entropy(logits, labels, reduction="none")

    primals = [w.astype(np.float32) for w in params.values()]
    moves, slopes, noise = np.zeros(size, int), [], np.zeros((6, size), np.float32)
    for i in range(6):
        positions, signs = minibit.sparse_noise(9, 2, i, size, 0.25)
        noise[i, positions] = signs
        parts = np.split(noise[i], [48, 112])
        tangents = [part.reshape(w.shape) for part, w in zip(parts, primals, strict=True)]
        slopes.append(minibit.jvp(losses, tuple(primals), tuple(tangents))[1])
    sums = np.sum(slopes, 1, dtype=np.float64)
    codes = minibit.noise_step.keep_terns(sums, np.square(slopes).sum(1), "absolute")
    moves = -codes.astype(int) @ noise.astype(int)
    new, found = port.sampled_step(
        params, x, labels, 9, 2, 6, 0.25, logit_scale=0.5, activations=activations
    )
    np.testing.assert_array_equal(found, codes)
    assert np.abs(moves).max() > 1
    after = np.concatenate([np.asarray(new[name]).ravel() for name in params])
    np.testing.assert_array_equal(after, np.clip(flat + moves, -1, 1))
