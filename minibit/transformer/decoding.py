"""Decoding: one token after another, from what the model remembers of the earlier ones.

    logits  ->  sample  ->  the next token  ->  its keys and values into the cache  ->  logits  ...

Each new token costs one pass through the weights, and packed models have a fast way for it
(`minibit.transformer.packed_token`); several tokens at once, and any other model, go through
`minibit.transformer.model`. A drawn token is a pure function of the logits and one number in
[0, 1), and that number one of the seed and the token's place (Philox, domain `TOKENS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, thread_count
from minibit.kernels.threads import cpus
from minibit.matmul import ternary_matmul
from minibit.noise import TOKENS, uniform
from minibit.ternary import TernaryMatrix
from minibit.transformer.attend import positions
from minibit.transformer.blocks import embed
from minibit.transformer.kv_cache import KVCache
from minibit.transformer.model import BitNetModel, logits_of, run_layers
from minibit.transformer.packed_token import packed_arrays, packed_step
from minibit.transformer.projections import Linear, by_type, packed_linear
from minibit.transformer.sampling import check_sampling, sample

__all__ = ["Decoder", "generate"]

Floats = NDArray[np.float32]

PIECE = 128  # tokens of a prompt that are read at once


class Decoder:
    """A text that a model goes on with: its tokens, and a cache of those that it has read.

    At most so many `threads` are used; by default one per CPU (`minibit.kernels.threads.cpus`), for
    a single token 16 at most, and one alone for models of less than 4 MB. Every number, 1 or more,
    gives the same logits.

    Examples
    --------
    >>> from minibit.transformer import BitNetConfig, BitNetModel, init_params
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> decoder = Decoder(BitNetModel(config, init_params(config, seed=0)))
    >>> decoder.append([5, 6, 7])
    >>> list(decoder.generate(3)) == list(decoder.text[3:])
    True
    """

    def __init__(self, model: BitNetModel, *, threads: int | None = None) -> None:
        self.model = model
        self.cache = KVCache(model.config)
        self._threads = thread_count(threads)
        self._text: list[int] = []
        self._forgotten = 0  # tokens before the text
        self._last: Floats | None = None
        self._packed = packed_arrays(model)

    @property
    def text(self) -> tuple[int, ...]:
        """All tokens so far, also those that are not yet read."""
        return tuple(self._text)

    def append(self, tokens: Iterable[SupportsIndex]) -> None:
        """Add tokens to the text; they are read when their logits are asked for.

        None is added if one is no token of the model or they do not fit into `max_positions`.
        """
        config = self.model.config
        new = [integer("tokens", token, 0, config.vocab_size - 1) for token in tokens]
        if len(self._text) + len(new) > config.max_positions:
            raise ValueError(
                f"a text has at most {config.max_positions} tokens with this model, "
                f"got {len(self._text)} + {len(new)}"
            )
        self._text += new

    def forget(self, keep: int) -> None:
        """Forget all but the last `keep` tokens, which are read anew from position 0 on.

        So a text can go on beyond `max_positions`; what is drawn next has the number of its place
        in the whole text.
        """
        keep = integer("keep", keep, 0, len(self._text))
        self._forgotten += len(self._text) - keep
        self._text = self._text[len(self._text) - keep :]
        self.cache.truncate(0)
        self._last = None

    def logits(self) -> Floats:
        """Read the tokens that are not yet read, and return the logits of the next token, (vocab,).

        The array is read-only, as it is handed out until the text goes on: change a copy.
        Raises ValueError if the text is empty, or the model computes NaN or infinity.
        """
        self._check_not_empty()
        end = len(self._text)
        if self._last is None or self.cache.length < end:
            if self.cache.length == end:  # reading it was interrupted
                self.cache.truncate(end - 1)
            self._last = None
            logits = self._read_to(end)
            if not np.isfinite(logits).all():
                raise ValueError(f"the model computed NaN or infinity at position {end - 1}")
            logits.flags.writeable = False
            self._last = logits
        return self._last

    def _check_not_empty(self) -> None:
        if not self._text:
            raise ValueError("the text is empty: append a token first")

    def _read_to(self, end: int) -> Floats:
        """Read the text up to `end`, and return the logits after it."""
        packed, cache, threads = self._packed, self.cache, self._threads
        before = end if packed is None else end - 1  # the last token may have a fast way
        while cache.length < before:
            piece = self._text[cache.length : before][:PIECE]
            if packed is not None and len(piece) == 1:
                packed_step(packed, piece[0], cache, threads=threads, head=False)
            else:
                x = _read(self.model, piece, cache, threads)
        if packed is not None:
            return packed_step(packed, self._text[-1], cache, threads=threads)
        linear = _linear_of(self.model, threads)
        return np.asarray(logits_of(self.model.config, self.model.params, x, linear)[0])

    def generate(
        self,
        count: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: SupportsIndex = 0,
        stop: Iterable[int] = (),
    ) -> Iterator[int]:
        """Go on with the text: yield up to `count` tokens, each drawn from the logits before it.

        Parameters, and what ends the text, are as for `minibit.transformer.generate`. A token that
        is yielded is a part of the text, one of `stop` is not: the text can go on after it.
        """
        count = integer("count", count)
        check_sampling(temperature, top_k, top_p)
        integer("seed", seed, 0, 2**64 - 1)
        if count:
            self._check_not_empty()
        ends = frozenset(stop)

        def draws() -> Iterator[int]:
            for _ in range(count):
                if len(self._text) == self.model.config.max_positions:
                    return
                step = self._forgotten + len(self._text)
                draw = float(uniform(seed, 1, domain=TOKENS, step=step)[0])
                token = sample(
                    self.logits(), draw, temperature=temperature, top_k=top_k, top_p=top_p
                )
                if token in ends:
                    return
                self._text.append(token)
                yield token

        return draws()


def generate(
    model: BitNetModel,
    prompt: Sequence[SupportsIndex],
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: SupportsIndex = 0,
    stop: Iterable[int] = (),
) -> Iterator[int]:
    """Go on with a prompt: yield up to `count` tokens, one after another.

    Token t of the text, counted from 0 with the prompt, is `sample` of the logits of the tokens
    before it, with number 0 of the stream of domain `TOKENS` (7), step t (`minibit.noise.uniform`),
    of a seed below 2**64. temperature, top_k and top_p are as in `sample`; temperature 0, the
    default, takes the most probable token. Fewer than `count` tokens come if the text reaches
    `max_positions` or a token of `stop`, which is not yielded. A TypeError or ValueError comes at
    once, if the prompt is empty, too long or holds no token of the model, or if another argument is
    out of range.

    Examples
    --------
    >>> from minibit.transformer import BitNetConfig, BitNetModel, init_params
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> model = BitNetModel(config, init_params(config, seed=0))
    >>> greedy = list(generate(model, [5, 6, 7], 4))
    >>> greedy == [int(model.logits([[5, 6, 7, *greedy[:i]]])[0, -1].argmax()) for i in range(4)]
    True
    """
    decoder = Decoder(model)
    decoder.append(prompt)
    return decoder.generate(
        count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop
    )


def _linear_of(model: BitNetModel, threads: int | None) -> Linear:
    """Return what multiplies, on so many threads: what each projection takes is asked once."""
    params = model.params
    linear: Linear = params.linear
    if linear not in (by_type, packed_linear):
        return linear
    packed = all(isinstance(w, TernaryMatrix) for name, w in params.items() if name[-5:] == "_proj")
    linear = ternary_matmul if packed else linear
    return partial(linear, threads=cpus() if threads is None else threads)


def _read(model: BitNetModel, tokens: Sequence[int], cache: KVCache, threads: int | None) -> Floats:
    """Read tokens into the cache, which is as before if that fails; return the last's stream.

    The logits of all tokens would cost more than all the rest if the vocabulary is large.
    """
    config, params, before = model.config, model.params, cache.length
    linear = _linear_of(model, threads)
    cache.claim(config, params)
    at = positions(1, len(tokens), config.head_dim, config.rope_theta, before, config.rope_divisors)
    x = embed(params["embed_tokens"], np.array(tokens))  # (tokens, hidden)
    try:
        cache.reserve(before + len(tokens))
        x = run_layers(config, params, x, at, linear, cache=cache)
    except BaseException:
        cache.truncate(before)
        raise
    return np.asarray(x[-1:])  # (1, hidden)
