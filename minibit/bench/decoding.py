"""``bench decode``: a checkpoint of the published 2B size, decoded as fast as memory gives it.

A process of its own loads a random checkpoint of the real configuration (1.2 GB), goes on with a
text for 16 tokens and says what memory it has. Then tokens and plain reads of a buffer as large as
all that a token reads (packed weights and head) take turns, both on all threads: a token cannot be
faster than that read. A small model is decoded before, so that compiling is not measured.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minibit import kernels
from minibit.bench import Figure, Options, Report, in_own_process, installed, interleaved, missing
from minibit.checkpoint import PUBLISHED_2B_4T, load_bitnet, random_checkpoint
from minibit.kernels.threads import cpus, run
from minibit.transformer import BitNetConfig, Decoder

__all__ = ["decode", "measure", "measure_transformers"]

CONFIG = PUBLISHED_2B_4T
TINY = BitNetConfig(64, 64, 64, layers=1, heads=2, kv_heads=1, max_positions=64)
SPACE = 2_000_000_000  # bytes of disk that must be free
SECONDS = 8.0  # of tokens and reads in turn
TOKENS = 16  # before memory is looked at


def decode(options: Options) -> Report:
    """Measure loading, memory and tokens per second of the published size."""
    if not kernels.compiled():
        raise ValueError("bench decode needs compiled kernels: see MINIBIT_KERNELS")
    threads = options.threads or min(cpus(), 2)
    peer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < SPACE:
            raise RuntimeError(f"{folder} has less than {SPACE / 1e9:.0f} GB free")
        path = Path(folder) / "model"
        random_checkpoint(path, CONFIG)
        ours = _in_own_process("measure", path, threads)
        if options.peers and installed("transformers"):
            peer = _in_own_process("measure_transformers", path, threads)
    token, read = ours["token"], ours["read"]
    figures = [
        Figure("loading", ours["load"], "s", 10.0, at_least=False),
        Figure("tokens per second", 1 / token, "tokens/s"),
        Figure("tokens per second that memory allows", 1 / read, "tokens/s"),
        Figure("share of what memory allows", read / token, "share", 0.5),
        Figure("packed weights and head", ours["bytes"], "bytes"),
        Figure("bandwidth of a plain read", ours["bytes"] / read / 1e9, "GB/s"),
    ]
    notes = [
        f"A random checkpoint of {CONFIG.layers} layers, width {CONFIG.hidden_size}, vocabulary "
        f"{CONFIG.vocab_size}; {threads} threads for tokens and for reads; medians of "
        f"{ours['rounds']} rounds in which each runs once."
    ]
    if ours["memory"] is None:
        notes.append("This system does not tell a process's resident memory: it is left out.")
    else:
        name = f"resident memory after {TOKENS} tokens, mapped pages counted"
        figures.append(Figure(name, ours["memory"], "bytes", 1.5e9, at_least=False))
    if peer:
        figures += [
            Figure("transformers, tokens per second", 1 / peer["token"], "tokens/s"),
            Figure("speed over transformers", peer["token"] / token, "x"),
            Figure("transformers, loading", peer["load"], "s"),
        ]
        if peer["memory"] is not None:
            figures.append(Figure("transformers, resident memory", peer["memory"], "bytes"))
        notes.append(
            "transformers reads the same files on as many threads, in bfloat16, with its cache of "
            f"keys and values; median of {peer['rounds']} tokens. It unpacks every matrix anew for "
            "each token."
        )
    notes += missing("transformers", "transformers", options.peers)
    return Report(figures, notes, {"minibit": ours, "transformers": peer})


def _in_own_process(name: str, path: Path, threads: int) -> dict[str, Any]:
    """Run a function of this module in a new process, and return its result."""
    return in_own_process(f"{__name__}:{name}", [str(path), threads, SECONDS], threads, name)


def measure(folder: str | Path, threads: int, seconds: float) -> dict[str, Any]:
    """Load a checkpoint and time its tokens beside plain reads, in this process.

    Returned are ``load``, ``token`` and ``read`` (median seconds), ``bytes`` that a token reads,
    ``memory`` (resident bytes after 16 tokens, None where the system does not tell) and ``rounds``.
    """
    from minibit.kernels import peaks

    with tempfile.TemporaryDirectory() as scratch:  # kernels compile, threads start
        random_checkpoint(Path(scratch) / "tiny", TINY)
        tiny = Decoder(load_bitnet(Path(scratch) / "tiny"), threads=threads)
        tiny.append([1])
        list(tiny.generate(2))
    start = time.perf_counter()
    model = load_bitnet(folder)
    load = time.perf_counter() - start
    decoder = Decoder(model, threads=threads)
    decoder.append([model.config.vocab_size // 2])
    list(decoder.generate(TOKENS))
    memory = resident_bytes()
    if decoder._packed is None:
        raise ValueError(f"{folder} is no packed model")
    size = decoder._packed.nbytes
    words = np.ones(size // 8, np.uint64)
    cuts = np.linspace(0, words.size, threads + 1).astype(int)
    parts = [words[a:b] for a, b in pairwise(cuts)]

    def read() -> bool:
        return run([lambda part=part: peaks.read(part) > 0 for part in parts])  # type: ignore[misc]

    def token() -> None:
        if len(decoder.text) == model.config.max_positions:
            raise ValueError("too many rounds for this model's positions")
        list(decoder.generate(1))

    times = interleaved({"token": token, "read": read}, seconds=seconds, least_rounds=TOKENS)
    medians = {name: float(np.median(each)) for name, each in times.items()}
    rounds = len(times["token"])
    return {"load": load, **medians, "bytes": size, "memory": memory, "rounds": rounds}


def measure_transformers(folder: str | Path, threads: int, seconds: float) -> dict[str, Any]:
    """Load and decode the same files with transformers, in this process; as `measure` returns."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    load = time.perf_counter() - start
    times: list[float] = []
    token, cache = torch.tensor([[model.config.vocab_size // 2]]), None
    with torch.no_grad():
        while len(times) < 3 or (sum(times) < seconds and len(times) < TOKENS):
            start = time.perf_counter()
            out = model(token, past_key_values=cache, use_cache=True)
            token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            times.append(time.perf_counter() - start)
    median = float(np.median(times[1:]))  # the first token fills caches
    return {"load": load, "token": median, "memory": resident_bytes(), "rounds": len(times) - 1}


def resident_bytes() -> int | None:
    """Resident memory of this process, the pages of mapped files among it; None if not told."""
    try:
        sizes = re.findall(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text("utf-8"))
    except OSError:
        return None
    return int(sizes[0]) * 1024 if sizes else None
