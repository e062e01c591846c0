"""A zoo of small model files: every layout, and every fault that readers and writers are known for.

The weights are those of a trained ternary language model, so that its matrices share axes as those
of a real one do. A seed chooses which channels of its residual stream a file keeps (64, in an order
of their own), its scales, and where faults are.
"""

import json
import struct
from dataclasses import dataclass, field, replace

import numpy as np

from minibit.checkpoint import write_safetensors
from minibit.checkpoint.diagnosis.layouts import LAYOUTS, orders
from minibit.checkpoint.gguf.types import TYPES
from minibit.language import shipped_model
from minibit.ternary import TernaryMatrix, to_hf, to_i2_s

NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
NAMES |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
HF = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
HF |= {"o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj"}
HF |= {"down": "mlp.down_proj"}
NUMBERS = {meaning[0].name: number for number, meaning in TYPES.items()}
FRACTION = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)


@dataclass
class Weights:
    """A model as the zoo's files hold it: codes by (layer, role), and what else there is."""

    codes: dict
    embedding: np.ndarray
    heads: int
    rng: np.random.Generator

    def scale(self):
        """A scale as a trained layer may have."""
        return np.float16(self.rng.uniform(0.02, 0.2))


def weights(seed, model=None, keep=64):
    """Codes of a trained model, by default the package's, less some channels of its stream."""
    model = model or shipped_model()[0]
    rng = np.random.default_rng(seed)
    channels = rng.permutation(model.config.hidden_size)[:keep]
    codes = {}
    for name, value in model.params.items():
        if isinstance(value, TernaryMatrix):
            _, layer, path = name.split(".", 2)
            role = next(role for role, other in HF.items() if other == path)
            matrix = value.codes()
            codes[int(layer), role] = matrix[channels] if role in "o down" else matrix[:, channels]
    embedding = np.asarray(model.params["embed_tokens"], np.float32)[:, channels]
    return Weights(codes, embedding, model.config.heads, rng)


def encode(layout, codes, scales):
    """Encode codes (n_out, n_in) by a layout's own table of places; scales (n_out, blocks)."""
    blocks = codes.reshape(-1, layout.weights)
    unit, slot = layout.places[:, 0].astype(int), layout.places[:, 1].astype(int)
    body = np.zeros((len(blocks), unit.max() + 1), np.int64)
    digits = blocks.astype(np.int64) + 1
    if layout.coding == "twos":
        np.add.at(body.T, unit, (digits << 2 * slot).T)
        body = body.astype(np.uint8)
    elif layout.coding in ("fractions", "plain"):
        top = np.bincount(unit)[unit] if layout.coding == "plain" else np.full(len(unit), 5)
        np.add.at(body.T, unit, (digits * 3 ** (top - 1 - slot)).T)
        body = FRACTION[body] if layout.coding == "fractions" else body.astype(np.uint8)
    else:
        body = slots(blocks, unit, slot)
    halves = np.asarray(scales, "<f2").reshape(-1, 1).view(np.uint8)
    parts = [halves, body] if layout.scale == 0 else [body, halves]
    return np.concatenate(parts, axis=1).reshape(-1)


def slots(blocks, unit, slot):
    """STQ1_0's slots and signs, worked out group by group from its description."""
    body = np.zeros((len(blocks), 40), np.uint8)
    groups = np.zeros((len(blocks), 64, 4), np.int8)
    groups[:, unit, slot] = blocks
    for row, block in enumerate(groups):
        for number, group in enumerate(block):
            zero = int(np.flatnonzero(group == 0)[0])
            first, second, third = (int(t) for t in np.delete(group, zero))
            pattern = 4 * zero + (second != first) + 2 * (third != first)
            body[row, number // 2] |= pattern << 4 * (number % 2)
            body[row, 32 + number // 8] |= (first < 0) << number % 8
    return body


def three_of_four(codes, layout, rng):
    """Codes with exactly one zero in each group: zeros are added or filled at random."""
    blocks = codes.reshape(-1, 256).copy()
    groups = np.zeros((len(blocks), 64, 4), np.int8)
    groups[:, layout.places[:, 0], layout.places[:, 1]] = blocks
    for group in groups.reshape(-1, 4):
        zeros = np.flatnonzero(group == 0)
        keep = rng.choice(zeros) if zeros.size else rng.integers(4)
        group[zeros] = rng.choice([-1, 1], zeros.size)
        group[keep] = 0
    return groups[:, layout.places[:, 0], layout.places[:, 1]].reshape(codes.shape)


def entry(key, value):
    """A metadata entry: a string, a whole number or a list of strings."""
    name = struct.pack("<Q", len(key)) + key.encode()
    if isinstance(value, str):
        return name + struct.pack("<IQ", 8, len(value)) + value.encode()
    if isinstance(value, list):
        strings = b"".join(struct.pack("<Q", len(v)) + v.encode() for v in value)
        return name + struct.pack("<IIQ", 9, 8, len(value)) + strings
    return name + struct.pack("<II", 4, value)


def write_gguf(path, tensors, metadata):
    """Write a GGUF file of any numbers and sizes: name -> (number, shape, bytes)."""
    table, data = b"", []
    offset = 0
    for name, (number, shape, raw) in tensors.items():
        lengths = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += struct.pack("<Q", len(name)) + name.encode() + lengths
        table += struct.pack("<IQ", number, offset)
        raw = bytes(raw) + bytes(-len(raw) % 32)
        data.append(raw)
        offset += len(raw)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(entry(*item) for item in metadata.items()) + table
    path.write_bytes(head + bytes(-len(head) % 32) + b"".join(data))
    return path


def about(model, arch="bitnet-b1.58"):
    """Metadata that the doctor reads."""
    heads = {f"{arch}.attention.head_count": model.heads}
    return {"general.architecture": arch, **heads, f"{arch}.attention.head_count_kv": model.heads}


def tensors_of(model, pack, number, layout=None):
    """All tensors: those whose rows are whole blocks packed, the others float16, as llama.cpp."""
    tensors = {"token_embd.weight": (0, model.embedding.shape, model.embedding.tobytes())}
    for (layer, role), codes in model.codes.items():
        name = f"blk.{layer}.{NAMES[role]}.weight"
        raw = None if layout and codes.shape[1] % layout.weights else pack(codes)
        if raw is None:
            halves = (codes * np.float32(model.scale())).astype("<f2")
            tensors[name] = (1, codes.shape, halves.tobytes())
        else:
            tensors[name] = (number, codes.shape, raw)
    return tensors


def blocks_file(path, model, layout, number=None, arch="bitnet-b1.58", spoil=None, more=None):
    """A GGUF file of one layout of blocks; `spoil` changes the scales or codes of a matrix."""

    def pack(codes):
        scales = np.full(codes.size // layout.weights, model.scale())
        if spoil is not None:
            codes, scales = spoil(codes.copy(), scales.copy())
        if layout.coding == "slots":
            codes = three_of_four(codes, layout, model.rng)
        return encode(layout, codes, scales).tobytes()

    number = NUMBERS[layout.name] if number is None else number
    tensors = tensors_of(model, pack, number, layout)
    return write_gguf(path, tensors, about(model, arch) | (more or {}))


def i2_s_file(path, model, order):
    """A file of bitnet.cpp in one of its three orders."""

    def pack(codes):
        multiple = {"x86": 128, "arm": 64, "rows": 1}[order]
        whole = codes.shape[1] % multiple == 0 and codes.shape[0] % 4 == 0
        return to_i2_s(codes, float(model.scale()), order).tobytes() if whole else None

    tensors = tensors_of(model, pack, 36)
    return write_gguf(path, tensors, about(model))


def hf_folder(path, model, pack, scale=None):
    """A Hugging Face directory of packed codes and their scales, or of floats."""
    path.mkdir()
    arrays = {"model.embed_tokens.weight": model.embedding}
    for (layer, role), codes in model.codes.items():
        name = f"model.layers.{layer}.{HF[role]}.weight"
        arrays[name] = pack(codes)
        if arrays[name].dtype == np.uint8:
            arrays[name + "_scale"] = np.float32([1 / model.scale() if scale is None else scale])
    kinds = {np.dtype("u1"): "U8", np.dtype("<f4"): "F32"}
    specs = {name: (kinds[array.dtype], array.shape) for name, array in arrays.items()}
    write_safetensors(path / "model.safetensors", specs, lambda name: [arrays[name]])
    sizes = {"num_attention_heads": model.heads, "num_key_value_heads": model.heads}
    (path / "config.json").write_text(json.dumps({"model_type": "bitnet", **sizes}))
    return path


def folded(model, block):
    """The model with a rotation folded into the columns of its matrices, and quantised again."""
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    turned = {}
    for role, codes in model.codes.items():
        n_in = codes.shape[1]
        width = min(block, n_in)
        if n_in % width or width & (width - 1):
            turned[role] = codes
            continue
        signs = np.random.default_rng(n_in).choice([-1, 1], n_in)
        parts = (codes * signs).reshape(-1, width) @ matrix[:width, :width] / np.sqrt(width)
        gamma = np.abs(parts).mean()
        turned[role] = np.clip(np.rint(parts / gamma), -1, 1).reshape(codes.shape).astype(np.int8)
    return Weights(turned, model.embedding, model.heads, model.rng)


def interleaved(model):
    """The model with rotary pairs side by side, as llama.cpp reorders rows of q and k."""
    codes = dict(model.codes)
    for (layer, role), matrix in model.codes.items():
        if role in ("q", "k"):
            parts = matrix.reshape(model.heads, 2, -1, matrix.shape[1])
            codes[layer, role] = parts.swapaxes(1, 2).reshape(matrix.shape)
    return Weights(codes, model.embedding, model.heads, model.rng)


def spoiled_scales(value, share=0.1):
    """Set some scales of each matrix to a value."""

    def spoil(codes, scales):
        rng = np.random.default_rng(codes.size)
        scales[rng.random(len(scales)) < share] = value
        scales[0] = value
        return codes, scales

    return spoil


def with_twos(codes, scales):
    """Turn one code in a hundred into +2."""
    chosen = np.random.default_rng(codes.size).random(codes.shape) < 0.01
    codes[chosen] = 2
    return codes, scales


def variant(name, order=None, **changes):
    """A layout in one of the orders that the doctor knows, by words, or with other fields."""
    layout = LAYOUTS[name]
    if order is not None:
        layout = next(other for other in orders(layout) if other.order == order)
    return replace(layout, **changes)


@dataclass
class Animal:
    """A file of the zoo, and what a doctor must say of it."""

    make: object  # (path, model) -> the path
    layout: str | None
    order: str | None = None  # the published one, if None
    kinds: set = field(default_factory=set)  # of findings
    rotation: str | None = "none"


HADAMARD = {
    "prism.hadamard.version": 1,
    "prism.hadamard.block_size": 256,
    "prism.hadamard.transform": "normalized-sylvester-walsh-hadamard",
    "prism.hadamard.weight_names": ["blk.0.ffn_down.weight"],
}
SIDE_HIGH = "side by side, highest bits first"
SIDE_LOW = "side by side, lowest bits first"
TRITS = "side by side, highest trit first"
NEIGHBOURS = "rows: four neighbouring rows, lowest bits first"


def plain(name, **fields):
    """An animal whose file is of one layout, written as published."""
    return Animal(lambda path, model: blocks_file(path, model, LAYOUTS[name]), name, **fields)


def other(layout, number=None, spoil=None, more=None, **fields):
    """An animal whose file is of a variant, under a number, or with spoiled scales or codes."""

    def make(path, model):
        return blocks_file(path, model, layout, number, spoil=spoil, more=more)

    return Animal(make, layout.name, **fields)


def split(path, model, parts=(1, 2)):
    """A GGUF file in two parts, or one of them alone."""
    whole = tensors_of(
        model,
        lambda c: encode(LAYOUTS["Q2_0"], c, np.full(c.size // 64, model.scale())).tobytes(),
        42,
        LAYOUTS["Q2_0"],
    )
    names = sorted(whole)
    files = []
    for number in (1, 2):
        file = path.with_name(f"{path.stem}-{number:05}-of-00002.gguf")
        if number in parts:
            some = {name: whole[name] for name in names[number - 1 :: 2]}
            write_gguf(file, some, about(model) | {"split.count": 2})
            files.append(file)
    return files[0]


def cut(path, model):
    """A file whose last two thirds are missing."""
    blocks_file(path, model, LAYOUTS["PQ2_0"])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    return path


def wide_rooms(path, model):
    """Blocks of 128 where the table of tensors leaves room for blocks of 64."""

    def pack(codes):
        scales = np.full(codes.size // 128, model.scale())
        raw = encode(LAYOUTS["PQ2_0"], codes, scales).tobytes()
        return raw + bytes(codes.size // 64 * 18 - len(raw))

    return write_gguf(path, tensors_of(model, pack, 42, LAYOUTS["PQ2_0"]), about(model))


def pointer(path, model):
    """What git-lfs leaves where the file should be."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path


def tl2(path, model):
    """A file of bitnet.cpp under the number that ggml gave to MXFP4."""

    def pack(codes):
        return model.rng.bytes(codes.size // 24 * 5 + 32)

    return write_gguf(path, tensors_of(model, pack, 39, LAYOUTS["Q2_0"]), about(model))


def grouped(codes, model):
    """Floats that are ternary times a scale per 32 columns."""
    n_out, n_in = codes.shape
    scales = model.rng.uniform(0.02, 0.2, (n_out, n_in // 32, 1)).astype(np.float32)
    return (codes.reshape(n_out, -1, 32) * scales).reshape(n_out, n_in).astype(np.float32)


def neighbours(codes):
    """Four neighbouring rows per byte, where a quarter of the matrix apart is published."""
    n_out, n_in = codes.shape
    return to_hf(codes.reshape(n_out // 4, 4, n_in).swapaxes(0, 1).reshape(n_out, n_in))


ZOO = {
    "q2_0": plain("Q2_0"),
    "pq2_0": plain("PQ2_0"),
    "ptq1_0": plain("PTQ1_0"),
    "tq1_0": plain("TQ1_0"),
    "tq2_0": plain("TQ2_0"),
    "stq1_0": plain("STQ1_0"),
    "i2_s x86": Animal(lambda p, m: i2_s_file(p, m, "x86"), "I2_S"),
    "i2_s arm": Animal(
        lambda p, m: i2_s_file(p, m, "arm"), "I2_S",
        "arm: 16 columns apart, highest bits first", {"order"},
    ),
    "i2_s rows": Animal(
        lambda p, m: i2_s_file(p, m, "rows"), "I2_S",
        "rows: four neighbouring rows, highest bits first", {"order"},
    ),
    "hugging face": Animal(lambda p, m: hf_folder(p, m, to_hf), "HF"),
    "hugging face, neighbours": Animal(
        lambda p, m: hf_folder(p, m, neighbours), "HF", NEIGHBOURS, {"order"}
    ),
    "hugging face, scales zero": Animal(
        lambda p, m: hf_folder(p, m, to_hf, 0), "HF", None, {"scale-zero"}
    ),
    "hugging face, scales NaN": Animal(
        lambda p, m: hf_folder(p, m, to_hf, np.nan), "HF", None, {"scale-nan"}
    ),
    "floats": Animal(
        lambda p, m: hf_folder(p, m, lambda c: c.astype(np.float32) * np.float32(0.05)), "F32"
    ),
    "grouped floats": Animal(lambda p, m: hf_folder(p, m, lambda c: grouped(c, m)), "F32"),
    "split": Animal(split, "Q2_0"),
    "split, a part missing": Animal(lambda p, m: split(p, m, (2,)), "Q2_0", "?", {"split"}, "?"),
    "pq2_0 under 42": other(LAYOUTS["PQ2_0"], 42, kinds={"type-number"}),
    "stq1_0 under 42": other(LAYOUTS["STQ1_0"], 42, kinds={"type-number"}),
    "tq2_0 under 99": other(LAYOUTS["TQ2_0"], 99, kinds={"type-number"}),
    "ptq1_0 under 35": other(LAYOUTS["PTQ1_0"], 35, kinds={"type-number"}),
    "128 in rooms for 64": Animal(wide_rooms, "PQ2_0", kinds={"type-number", "size"}),
    "pq2_0, highest bits first": other(
        variant("PQ2_0", SIDE_HIGH), order=SIDE_HIGH, kinds={"order"}
    ),
    "tq2_0, side by side": other(variant("TQ2_0", SIDE_LOW), order=SIDE_LOW, kinds={"order"}),
    "ptq1_0, byte by byte": other(variant("PTQ1_0", TRITS), order=TRITS, kinds={"order"}),
    "tq1_0, plain base 3": other(variant("TQ1_0", coding="plain"), kinds={"coding"}),
    "pq2_0, scale last": other(variant("PQ2_0", scale=32), kinds={"scale-place"}),
    "tq2_0, scale first": other(variant("TQ2_0", scale=0), kinds={"scale-place"}),
    "q2_0 with +2": other(LAYOUTS["Q2_0"], spoil=with_twos, kinds={"code-3"}),
    "tq2_0 with code 3": other(LAYOUTS["TQ2_0"], spoil=with_twos, kinds={"code-3"}),
    "zero scales": other(LAYOUTS["Q2_0"], spoil=spoiled_scales(0), kinds={"scale-zero"}),
    "NaN scales": other(LAYOUTS["PQ2_0"], spoil=spoiled_scales(np.nan), kinds={"scale-nan"}),
    "negative scales": other(LAYOUTS["Q2_0"], spoil=spoiled_scales(-0.1), kinds={"scale-negative"}),
    "denormal scales": other(
        LAYOUTS["TQ2_0"], spoil=spoiled_scales(3e-6), kinds={"scale-denormal"}
    ),
    "all scales zero": other(
        LAYOUTS["Q2_0"], spoil=spoiled_scales(0, 2), kinds={"unclear", "scale-zero"}
    ),
    "truncated": Animal(cut, "PQ2_0", "?", {"truncated"}, "?"),
    "llama": Animal(
        lambda p, m: blocks_file(p, interleaved(m), LAYOUTS["Q2_0"], arch="llama"), "Q2_0"
    ),
    "llama, rows as in Hugging Face": Animal(
        lambda p, m: blocks_file(p, m, LAYOUTS["Q2_0"], arch="llama"), "Q2_0", None, {"heads"}
    ),
    "qwen3, rows permuted": Animal(
        lambda p, m: blocks_file(p, interleaved(m), LAYOUTS["Q2_0"], arch="qwen3"), "Q2_0", None,
        {"heads"},
    ),
    "folded": Animal(
        lambda p, m: blocks_file(p, folded(m, 256), LAYOUTS["PQ2_0"], more=HADAMARD), "PQ2_0", "?",
        {"folded"}, "256",
    ),
    "folded, not said": Animal(
        lambda p, m: blocks_file(p, folded(m, 256), LAYOUTS["PTQ1_0"]), "PTQ1_0", "?",
        {"rotation-missing"}, "256",
    ),
    "said to be folded": other(LAYOUTS["PQ2_0"], more=HADAMARD, kinds={"rotation-declared"}),
    "pointer": Animal(pointer, None, None, {"other"}, None),
    "tl2 under 39": Animal(tl2, "TL2", "?", {"named"}, "?"),
}  # fmt: skip
