"""A language model that was trained, and its file: recipe, seed, vocabulary, weights and losses."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import open_whole, parse_object
from minibit.language.characters import Tokens, Vocabulary
from minibit.language.losses import evaluate_loss
from minibit.language.recipes import LINEAR, Recipe
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    Linear,
    check_params,
    float_linear,
    pack_params,
    param_shapes,
)

__all__ = ["TrainedModel"]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A character-level model, and how it was trained."""

    recipe: Recipe
    seed: int
    vocabulary: Vocabulary
    params: dict[str, NDArray[np.float32]]  # the latent ones for b1.58
    losses: NDArray[np.float32]  # (steps,), of every batch, before its step
    seconds: float  # of training

    @property
    def config(self) -> BitNetConfig:
        """Configuration of the model."""
        return self.recipe.config(len(self.vocabulary))

    @property
    def linear(self) -> Linear:
        """The linear function of training."""
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
        about = {"recipe": asdict(self.recipe), "seed": self.seed, "seconds": self.seconds}
        about["characters"] = self.vocabulary.characters
        named: dict[str, Any] = {f"params.{name}": w for name, w in self.params.items()}
        with open_whole(path, overwrite=True) as file:
            np.savez_compressed(file, about=json.dumps(about), losses=self.losses, **named)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainedModel:
        """Read what `save` wrote; anything else is a ValueError.

        What the file says of itself is read first: no larger or other array is unpacked.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                sizes = {info.filename: info.file_size for info in file.zip.infolist()}
                _check_size(sizes, "about", 1 << 20)
                about = parse_object(str(file["about"]).encode())
                recipe, vocabulary = Recipe(**about["recipe"]), Vocabulary(about["characters"])
                if recipe.layers > len(sizes):
                    raise ValueError(f"{recipe.layers} layers, and {len(sizes)} arrays")
                config = recipe.config(len(vocabulary))
                shapes = param_shapes(config)
                for name, shape in shapes.items():
                    _check_size(sizes, f"params.{name}", 4 * math.prod(shape))
                _check_size(sizes, "losses", 4 * recipe.steps)
                params = {name: file[f"params.{name}"] for name in shapes}
                losses = file["losses"]
            check_params(config, params)
            if any(a.dtype != np.float32 for a in (losses, *params.values())):
                raise ValueError("its arrays must be float32")
            return cls(recipe, about["seed"], vocabulary, params, losses, about["seconds"])
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is no trained language model: {error}") from None


def _check_size(sizes: Mapping[str, int], name: str, most: int) -> None:
    """Check that an archive has an array, of at most so many bytes behind its header."""
    if (size := sizes.get(f"{name}.npy")) is None:
        raise ValueError(f"{name} is missing")
    if size > most + 4096:
        raise ValueError(f"{name} takes {size} bytes, it may take {most}")
