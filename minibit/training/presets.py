"""Presets: every hyper-parameter of a training run, under a name."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Literal

from minibit.base import one_of
from minibit.layers import ACTIVATIONS
from minibit.noise_step import Sampled, Units, geometric
from minibit.steps import MOST_WEIGHTS

__all__ = ["PRESETS", "SHIFTS", "STEPS_PER_RECORD", "Preset"]

STEPS_PER_RECORD = 32  # of a log: one density each

SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # rows, columns
MOST = {
    "rate": 1,
    "easy_share": 1,
    "shifts": len(SHIFTS),
    "steps": 2**32,  # a log numbers them in 32 bits
    "batch": 2**18,  # samples, 0.2 GB of MNIST
    "perturbations": 2**20,
}
LEAST_SHARE = 1e-3  # a batch of learnt samples takes 1 / easy_share times its size of draws


@dataclass(frozen=True)
class Preset:
    """Every hyper-parameter of a run. Pairs run geometrically from the first step to the last."""

    method: Literal["sampled", "units"]
    steps: int
    batch: tuple[int, int]
    logit_scale: float = 0.12
    zeros: float = 0.7  # share of zeros in the initial weights
    widths: tuple[int, ...] = (784, 256, 256, 256, 10)
    perturbations: int = 128
    density: tuple[float, float] = (6e-5, 3.7e-6)
    density_by_loss: tuple[tuple[float, float], ...] = ()  # (loss below which, density)
    score: Literal["absolute", "t"] = "t"
    units: tuple[int, ...] = (16, 16, 16, 4)
    rate: tuple[float, float] = (0.004, 0.0008)
    threshold: float = 0.1  # 1 - p_y up to which a sample counts as learnt; -1: none does
    easy_share: float = 0.05  # probability with which a learnt sample is drawn; 1: as any other
    shifts: int = 5  # none and one pixel each way; 1: none
    activations: Literal["float", "int8"] = "float"  # of the hidden layers, as in `MLP`

    def __post_init__(self) -> None:
        """Refuse values that no run can start from; the message names the field."""
        whole = ("steps", "batch", "widths", "perturbations", "units", "shifts")
        pairs = ("batch", "density", "rate")
        for name in (*pairs, "widths", "units"):
            value, kind = getattr(self, name), "pair" if name in pairs else "tuple"
            if not isinstance(value, tuple) or (kind == "pair" and len(value) != 2):
                raise ValueError(f"{name} must be a {kind}, got {value!r}")
        for name in (*whole, "density", "rate", "logit_scale", "easy_share"):
            value, most = getattr(self, name), MOST.get(name, inf)
            kind = "positive whole numbers" if name in whole else "positive and finite"
            for number in value if isinstance(value, tuple) else (value,):
                real = not isinstance(number, bool) and 0 < number < inf
                if not real or (name in whole and number != int(number)):
                    raise ValueError(f"{name} must be {kind}, got {value}")
                if number > most:
                    raise ValueError(f"{name} must be at most {most}, got {value}")
        densities = (*self.density, *(density for _, density in self.density_by_loss))
        if not all(0 < density < 1 for density in densities):
            raise ValueError(f"density must lie between 0 and 1, got {densities}")
        if self.easy_share < LEAST_SHARE:
            raise ValueError(f"easy_share must be at least {LEAST_SHARE}, got {self.easy_share}")
        if not self.threshold < 1:
            raise ValueError(f"threshold must be below 1, where 1 - p_y ends, got {self.threshold}")
        if not 0 <= self.zeros <= 1:
            raise ValueError(f"zeros must lie in [0, 1], got {self.zeros}")
        one_of("activations", self.activations, ACTIVATIONS)
        if len(self.widths) < 2:
            raise ValueError(f"widths must be at least two, inputs to classes, got {self.widths}")
        weights = sum(n_out * n_in for n_in, n_out in pairwise(self.widths))
        if weights > MOST_WEIGHTS:
            takes = f"make {weights} weights, which take as many bytes; the most is 2**28"
            raise ValueError(f"widths {self.widths} {takes}")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the weights, (n_out, n_in), from the first layer on."""
        layers = enumerate(pairwise(self.widths), start=1)
        return {f"w{layer}": (n_out, n_in) for layer, (n_in, n_out) in layers}

    def settings(self) -> Sampled | Units:
        """Return the method of noise_step, with its schedules over all steps."""
        if self.method == "sampled":
            density = geometric(*self.density, self.steps, every=STEPS_PER_RECORD)
            return Sampled(self.perturbations, density, self.score)
        units, layers = self.units, len(self.widths) - 1
        if len(units) != layers:  # the first entry for hidden layers, the last for the output
            units = (*(units[0],) * (layers - 1), units[-1])
        units = tuple(min(n, n_out) for n, n_out in zip(units, self.widths[1:], strict=True))
        return Units(units, rate=geometric(*self.rate, self.steps))


PRESETS = {
    "paper": Preset(
        method="sampled",
        steps=1550,
        batch=(1024, 1024),
        logit_scale=1.0,
        zeros=1 / 3,
        density_by_loss=((2.0, 1.5e-5), (1.0, 3.7e-6)),
        score="absolute",
        threshold=-1.0,
        easy_share=1.0,
        shifts=1,
    ),
    "strict": Preset(method="sampled", steps=1550, batch=(512, 2048)),
    "small": Preset(
        method="units", steps=800, batch=(1024, 8192), rate=(0.0035, 0.0004), activations="int8"
    ),
    "accurate": Preset(
        method="units", steps=6000, batch=(1024, 2048), rate=(0.005, 0.0001), activations="int8"
    ),
}
