"""Character-level language models: vocabulary, batches from Philox, training, and files.

The text is cut once: the last tenth is held out. A batch is drawn from Philox by seed and step, so
that every model of one seed sees the same characters in the same order. The loss is the mean
negative log-probability of the next character, in nats.

    loss, gradient   of each half of the batch on a thread of its own, then their mean
    gradient         scaled down to length 1 if longer
    step             AdamW, betas (0.9, 0.95); weight decay 0.1 in the first half, then 0
    learning rate    peak (1 - step / steps) after a warm-up, times 2/3 from half-way on

May import: anything of minibit.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.blocks import token_loss
from minibit.datasets import load_text
from minibit.decoding import Decoder, sample
from minibit.kernels.threads import run
from minibit.philox import BATCH, TOKENS, integers, uniform
from minibit.tape import Adam, global_norm, two_stage, value_and_grad
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    Linear,
    bit_linear,
    check_params,
    float_linear,
    forward,
    init_params,
    pack_params,
    param_shapes,
)

__all__ = [
    "SIZES",
    "Optimizer",
    "Recipe",
    "TrainedModel",
    "Vocabulary",
    "draw_batch",
    "evaluate_loss",
    "loss_and_gradient",
    "recipe",
    "shipped_text",
    "train_language",
    "write_text",
]

Tokens = NDArray[np.int64]
Weights = Literal["float", "b1.58"]
LINEAR: dict[str, Linear] = {"float": float_linear, "b1.58": bit_linear}


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a text, in order of their code points: a character is its index.

    Attributes
    ----------
    characters : str
        Distinct.

    Examples
    --------
    >>> vocabulary = Vocabulary.of("banana")
    >>> vocabulary.encode("nab")
    array([2, 0, 1])
    >>> vocabulary.decode([1, 0, 2])
    'ban'
    """

    characters: str

    def __post_init__(self) -> None:
        """Check that no character stands twice."""
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise ValueError(f"characters must be distinct, and one at least: {self.characters!r}")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """List the characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        """Return the number of characters."""
        return len(self.characters)

    def encode(self, text: str) -> Tokens:
        """Return the index of every character; one that is not listed is a ValueError."""
        index = {character: i for i, character in enumerate(self.characters)}
        unknown = next((c for c in text if c not in index), None)
        if unknown is not None:
            raise ValueError(f"text has the character {unknown!r}, which the vocabulary has not")
        return np.array([index[character] for character in text], np.int64)

    def decode(self, tokens: Any) -> str:
        """Return the characters of tokens, joined; one out of range is a ValueError."""
        array = np.asarray(tokens).reshape(-1)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"tokens must be integers, got {array.dtype}")
        if array.size and not 0 <= array.min() <= array.max() < len(self):
            raise ValueError(f"tokens must be 0 to {len(self) - 1}, got {array.tolist()}")
        return "".join(self.characters[i] for i in array)


def shipped_text() -> tuple[Vocabulary, Tokens, Tokens]:
    """Return the vocabulary of the text in the package, its first nine tenths and its last.

    Returns
    -------
    vocabulary : Vocabulary
    train, validation : int64 arrays

    Examples
    --------
    >>> vocabulary, train, validation = shipped_text()
    >>> len(vocabulary), len(train), len(validation)
    (83, 342614, 38069)
    """
    text = load_text()
    vocabulary = Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    cut = len(tokens) * 9 // 10
    return vocabulary, tokens[:cut], tokens[cut:]


@dataclass(frozen=True)
class Recipe:
    """How a language model is made and trained.

    Attributes
    ----------
    weights : {"float", "b1.58"}
        Which projections: float, or ternary with int8 activations (`bit_linear`).
    hidden, inner, heads, layers : int
        Widths of the stream and of the gated unit, heads, blocks.
    context, batch : int
        Tokens of a row, rows of a batch.
    peak : float
        Highest learning rate.
    steps, warmup : int
        Batches, and how many of them the learning rate rises.
    weight_decay : float
        In the first half.
    clip : float
        Most length of a gradient.
    sub_norms : bool
        As `BitNetConfig`.
    """

    weights: Weights
    hidden: int
    inner: int
    heads: int
    peak: float
    layers: int = 2
    context: int = 64
    batch: int = 16
    steps: int = 1953  # about 2 million tokens of 16 x 64 a step
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    sub_norms: bool = True

    def __post_init__(self) -> None:
        """Check what the configuration of the model does not."""
        if self.weights not in LINEAR:
            raise ValueError(f"weights must be one of {', '.join(LINEAR)}, got {self.weights!r}")
        for name in ("steps", "batch", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def config(self, vocabulary: int) -> BitNetConfig:
        """Return the configuration of the model for a vocabulary of that size."""
        return BitNetConfig(
            vocabulary,
            self.hidden,
            self.inner,
            self.layers,
            self.heads,
            self.heads,
            max_positions=self.context,
            sub_norms=self.sub_norms,
        )

    @property
    def projections(self) -> int:
        """Number of weights in projections: those that are ternary in b1.58."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)


SIZES: dict[str, dict[str, Any]] = {  # b1.58 wants 1.5 to 2 times the float's learning rate
    "55k": {"hidden": 48, "inner": 128, "heads": 2, "peaks": (8e-3, 1.2e-2)},
    "221k": {"hidden": 96, "inner": 256, "heads": 4, "peaks": (4e-3, 8e-3)},
    "885k": {"hidden": 192, "inner": 512, "heads": 6, "peaks": (2.5e-3, 4e-3)},
}


def recipe(size: str, weights: Weights, **overrides: Any) -> Recipe:
    """Return the recipe of a size, named by its number of weights in projections.

    Parameters
    ----------
    size : str
        A key of `SIZES`.
    weights : {"float", "b1.58"}
    overrides
        Fields of `Recipe` to replace.

    Raises
    ------
    ValueError
        If the size or the kind of weights is unknown.

    Examples
    --------
    >>> recipe("221k", "b1.58").projections
    221184
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    fields = dict(SIZES[size])
    peaks = dict(zip(LINEAR, fields.pop("peaks"), strict=True))
    fields["peak"] = peaks.get(weights, 0.0)
    return Recipe(weights, **(fields | overrides))


def draw_batch(
    tokens: Tokens, seed: int, step: int, batch: int = 16, context: int = 64
) -> tuple[Tokens, Tokens]:
    """Draw rows of a text, and for every token the one after it.

    The starts are ``integers(seed, len(tokens) - context, batch)`` of the stream of domain `BATCH`
    and this step.

    Parameters
    ----------
    tokens : int64 array
        Longer than `context`.
    seed, step, batch, context : int

    Returns
    -------
    x, y : int64 arrays, shape (batch, context)

    Raises
    ------
    ValueError
        If the text is too short.

    Examples
    --------
    >>> x, y = draw_batch(np.arange(100), seed=0, step=3, batch=2, context=5)
    >>> x
    array([[41, 42, 43, 44, 45],
           [31, 32, 33, 34, 35]])
    >>> bool((y == x + 1).all())
    True
    """
    if len(tokens) <= context:
        raise ValueError(f"tokens must be more than context = {context}, got {len(tokens)}")
    starts = integers(seed, len(tokens) - context, batch, domain=BATCH, step=step)  # (batch,)
    rows = tokens[starts[:, None] + np.arange(context + 1)]  # (batch, context + 1)
    return rows[:, :-1], rows[:, 1:]


def loss_and_gradient(
    config: BitNetConfig,
    params: Mapping[str, Any],
    x: Tokens,
    y: Tokens,
    *,
    linear: Linear = float_linear,
    threads: int = 1,
) -> tuple[float, dict[str, Any]]:
    """Compute the mean loss of a batch and its gradient, a part of the rows on every thread.

    Parameters
    ----------
    config : BitNetConfig
    params : mapping of float arrays
    x, y : int64 arrays, shape (batch, context)
        Tokens and those after them.
    linear : callable
        As in `minibit.transformer.forward`.
    threads : int
        Parts. Keep NumPy's own threads at one (``OPENBLAS_NUM_THREADS=1``), or they compete.

    Returns
    -------
    loss : float
    gradient : dict
        Of the names, shapes and types of `params`.

    Examples
    --------
    >>> config = BitNetConfig(9, 4, 8, layers=1, heads=1, kv_heads=1, max_positions=8)
    >>> x = np.array([[1, 2, 3], [4, 5, 6]])
    >>> loss, gradient = loss_and_gradient(config, init_params(config, 0), x, x + 1)
    >>> gradient["norm"].shape
    (4,)
    """

    def loss_of(params: Mapping[str, Any], x: Tokens, y: Tokens, share: float) -> Any:
        return token_loss(forward(config, params, x, linear=linear), y) * share

    parts = np.array_split(np.arange(len(x)), min(threads, len(x)))
    found: list[Any] = [None] * len(parts)

    def part(i: int) -> bool:
        rows = slice(parts[i][0], parts[i][-1] + 1)
        found[i] = value_and_grad(loss_of)(params, x[rows], y[rows], len(parts[i]) / len(x))
        return True

    run([partial(part, i) for i in range(len(parts))])
    _, gradient = found[0]

    def add_up(names: list[str]) -> bool:
        for name in names:
            for _, piece in found[1:]:
                np.add(gradient[name], piece[name], out=gradient[name])
        return True

    run([partial(add_up, names) for names in _shares(params, len(parts))])
    return float(sum(loss for loss, _ in found)), gradient


def _shares(params: Mapping[str, Any], count: int) -> list[list[str]]:
    """Deal out parameters, the largest first, to whoever has the fewest weights."""
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(params, key=lambda name: -int(params[name].size)):
        least = sizes.index(min(sizes))
        shares[least].append(name)
        sizes[least] += int(params[name].size)
    return shares


class Optimizer:
    """AdamW with betas 0.9 and 0.95, a share of the parameters on every thread.

    Parameters
    ----------
    params : mapping of float arrays
    threads : int
        The result does not depend on it: every parameter moves by itself.

    Examples
    --------
    >>> optimizer = Optimizer({"w": np.ones(2), "b": np.ones(1)}, threads=2)
    >>> optimizer.step({"w": np.ones(2), "b": np.ones(1)}, lr=0.1, weight_decay=0.0)["b"].round(3)
    array([0.9])
    """

    def __init__(self, params: Mapping[str, Any], *, threads: int = 1) -> None:
        self.params = dict(params)
        self._shares = _shares(params, min(threads, len(params)))
        self._parts = [
            Adam({name: params[name] for name in names}, betas=(0.9, 0.95))
            for names in self._shares
        ]

    def step(
        self,
        gradient: Mapping[str, Any],
        lr: float,
        weight_decay: float,
        clip: float = math.inf,
    ) -> dict[str, Any]:
        """Shorten the gradient to length `clip`, move against it, return the new parameters."""
        squares = [0.0] * len(self._parts)

        def measure(i: int) -> bool:
            squares[i] = global_norm([gradient[name] for name in self._shares[i]]) ** 2
            return True

        def move(i: int) -> bool:
            mine = {name: gradient[name] for name in self._shares[i]}
            if shrink < 1:
                mine = {name: g * g.dtype.type(shrink) for name, g in mine.items()}
            self._parts[i].step(mine, lr, weight_decay)
            return True

        everyone = range(len(self._parts))
        run([partial(measure, i) for i in everyone])
        length = math.sqrt(sum(squares))
        shrink = clip / length if length > clip else 1.0
        run([partial(move, i) for i in everyone])
        moved = {name: w for part in self._parts for name, w in part.params.items()}
        self.params = {name: moved[name] for name in self.params}
        return self.params


def evaluate_loss(
    config: BitNetConfig,
    params: Mapping[str, Any],
    tokens: Tokens,
    *,
    linear: Linear = float_linear,
    rows: int = 128,
) -> float:
    """Mean loss over a text, cut into rows of `max_positions` tokens one after the other.

    Every token but the first is predicted once, from those before it in its row: 0 to
    ``max_positions - 1`` of them besides the one just read. A rest shorter than a row is left out.

    Parameters
    ----------
    config : BitNetConfig
    params : mapping
    tokens : int64 array
        More than `max_positions`.
    linear : callable
        As in `minibit.transformer.forward`.
    rows : int
        At a time.

    Returns
    -------
    float
        In nats a token.

    Raises
    ------
    ValueError
        If the text is too short.

    Examples
    --------
    >>> config = BitNetConfig(9, 4, 8, layers=1, heads=1, kv_heads=1, max_positions=8)
    >>> params = init_params(config, 0) | {"norm": np.zeros(4, np.float32)}  # knows nothing
    >>> f"{evaluate_loss(config, params, np.arange(17) % 9):.4f}"  # log 9
    '2.1972'
    """
    context = config.max_positions
    count = (len(tokens) - 1) // context
    if not count:
        raise ValueError(f"tokens must be more than {context}, got {len(tokens)}")
    x = tokens[: count * context].reshape(count, context)
    y = tokens[1 : count * context + 1].reshape(count, context)
    total = 0.0
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        logits = forward(config, params, x[part], linear=linear)  # (rows, context, vocab)
        total += float(token_loss(logits, y[part])) * len(x[part])
    return total / count


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A character-level model, and how it was trained.

    Attributes
    ----------
    recipe : Recipe
    seed : int
    vocabulary : Vocabulary
    params : dict of float32 arrays
        The latent ones for b1.58.
    losses : float32 array, shape (steps,)
        Of every batch, before its step.
    seconds : float
        Of training.
    """

    recipe: Recipe
    seed: int
    vocabulary: Vocabulary
    params: dict[str, NDArray[np.float32]]
    losses: NDArray[np.float32]
    seconds: float

    @property
    def config(self) -> BitNetConfig:
        """Configuration of the model."""
        return self.recipe.config(len(self.vocabulary))

    @property
    def linear(self) -> Linear:
        """What multiplied in training."""
        return LINEAR[self.recipe.weights]

    def model(self) -> BitNetModel:
        """Return the model to be used: float, or with packed ternary projections."""
        if self.recipe.weights == "float":
            return BitNetModel(self.config, dict(self.params), float_linear)
        return BitNetModel(self.config, pack_params(self.params))

    def loss(self, tokens: Tokens) -> float:
        """Return the mean loss over a text; see `evaluate_loss`."""
        return evaluate_loss(self.config, self.params, tokens, linear=self.linear)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into an ``.npz`` file, whole or not at all."""
        about = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "characters": self.vocabulary.characters,
            "seconds": self.seconds,
        }
        part = Path(f"{os.fspath(path)}.part")
        named: dict[str, Any] = {f"params.{name}": w for name, w in self.params.items()}
        with part.open("wb") as file:
            np.savez_compressed(file, about=json.dumps(about), losses=self.losses, **named)
        part.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainedModel:
        """Read what `save` wrote; anything else is a ValueError.

        What the file says of itself is read first: no array that does not belong to that model, or
        is larger than its own, is unpacked.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                sizes = {info.filename: info.file_size for info in file.zip.infolist()}
                _check_size(sizes, "about", 1 << 20)
                about = json.loads(str(file["about"]))
                made, vocabulary = Recipe(**about["recipe"]), Vocabulary(about["characters"])
                if made.layers > len(sizes):
                    raise ValueError(f"{made.layers} layers, and {len(sizes)} arrays")
                shapes = param_shapes(made.config(len(vocabulary)))
                for name, shape in shapes.items():
                    _check_size(sizes, f"params.{name}", 4 * math.prod(shape))
                _check_size(sizes, "losses", 4 * made.steps)
                params = {name: file[f"params.{name}"] for name in shapes}
                losses = file["losses"]
            check_params(made.config(len(vocabulary)), params)
            if any(a.dtype != np.float32 for a in (losses, *params.values())):
                raise ValueError("its arrays must be float32")
            return cls(made, about["seed"], vocabulary, params, losses, about["seconds"])
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is no trained language model: {error}") from None


def _check_size(sizes: Mapping[str, int], name: str, most: int) -> None:
    """Check that an archive has an array, of at most so many bytes behind its header."""
    size = sizes.get(f"{name}.npy")
    if size is None:
        raise ValueError(f"{name} is missing")
    if size > most + 4096:
        raise ValueError(f"{name} takes {size} bytes, it may take {most}")


def train_language(
    made: Recipe,
    seed: int = 0,
    *,
    threads: int = 1,
    stop: int | None = None,
    text: str | None = None,
    progress: Callable[[int, float, Mapping[str, Any]], None] | None = None,
) -> TrainedModel:
    """Train a character-level model.

    Parameters
    ----------
    made : Recipe
        See `recipe`.
    seed : int
        Of the initial parameters and of the batches.
    threads : int
        Parts of a batch that are computed side by side. The rounding of the sums depends on it.
    stop : int, optional
        Stop after so many steps of the schedule.
    text : str, optional
        To train on; the package's text, without its last tenth, by default.
    progress : callable (steps done, loss, params), optional
        Called after every step.

    Returns
    -------
    TrainedModel

    Raises
    ------
    ValueError
        If the text is too short, `stop` is negative, or `threads` is below 1.

    Examples
    --------
    >>> trained = train_language(recipe("55k", "b1.58"), stop=2)
    >>> trained.losses.shape
    (2,)
    """
    if text is None:
        vocabulary, tokens, _ = shipped_text()
    else:
        vocabulary = Vocabulary.of(text)
        tokens = vocabulary.encode(text)
    steps = made.steps if stop is None else min(stop, made.steps)
    if steps < 0:
        raise ValueError(f"stop must not be negative, got {stop}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    config, linear = made.config(len(vocabulary)), LINEAR[made.weights]
    params: Any = init_params(config, seed)
    optimizer = Optimizer(params, threads=threads)
    losses = np.empty(steps, np.float32)
    begin = time.perf_counter()
    for step in range(steps):
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        loss, gradient = loss_and_gradient(config, params, x, y, linear=linear, threads=threads)
        decay = made.weight_decay if step < made.steps / 2 else 0.0
        params = optimizer.step(gradient, learning_rate(made, step), decay, made.clip)
        losses[step] = loss
        if progress is not None:
            progress(step + 1, loss, params)
    return TrainedModel(made, seed, vocabulary, params, losses, time.perf_counter() - begin)


def write_text(
    model: BitNetModel,
    vocabulary: Vocabulary,
    prompt: str,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """Go on with a text of characters, for longer than the model's context.

    Whenever the context is full, the model reads the last half of it anew and goes on from there;
    so it does with a prompt that is longer.
    Character t of the text is `minibit.decoding.sample` of its logits with number 0 of the stream
    of domain `TOKENS`, step t, as in `minibit.decoding.generate`.

    Parameters
    ----------
    model : BitNetModel
    vocabulary : Vocabulary
    prompt : str
        One character at least; it is no part of the result.
    count : int
        How many characters.
    temperature, top_k, top_p
        As in `minibit.decoding.sample`.
    seed : int

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the prompt is empty or has a character that the vocabulary has not.

    Examples
    --------
    >>> trained = train_language(recipe("55k", "b1.58"), stop=0)
    >>> len(write_text(trained.model(), trained.vocabulary, "A", 70))
    70
    """
    if not prompt:
        raise ValueError("prompt must have one character at least")
    limit = model.config.max_positions
    text: list[int] = vocabulary.encode(prompt).tolist()
    begin, decoder = len(text), Decoder(model)
    decoder.append(text if begin <= limit else text[-max(1, limit // 2) :])
    for place in range(begin, begin + count):
        if len(decoder.text) == limit:
            decoder = Decoder(model)
            decoder.append(text[-max(1, limit // 2) :])
        number = float(uniform(seed, 1, domain=TOKENS, step=place)[0])
        token = sample(decoder.logits(), number, temperature=temperature, top_k=top_k, top_p=top_p)
        text.append(token)
        if len(decoder.text) < limit:
            decoder.append([token])
    return vocabulary.decode(text[begin:])


def learning_rate(made: Recipe, step: int) -> float:
    """Learning rate of a step: linear decay to 0, times 2/3 from half-way on; a linear warm-up."""
    return two_stage(step, made.steps, made.peak, made.peak * 2 / 3, made.warmup)
