"""A block's bytes as text, drawn from the table that readers decode by: ``docs/formats.md``."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from minibit.checkpoint.diagnosis.layouts import Layout

__all__ = ["byte_diagram"]

_SLOTS = {
    "twos": ("bits 0-1", "bits 2-3", "bits 4-5", "bits 6-7"),
    "fractions": ("trit 0", "trit 1", "trit 2", "trit 3", "trit 4"),
}


def byte_diagram(layout: Layout) -> str:
    """Return a drawing of a block: its bytes in order, and the weights that each holds.

    Bytes that go on as those before them do are left out.

    Examples
    --------
    >>> from minibit.checkpoint.diagnosis.layouts import LAYOUTS
    >>> print(byte_diagram(LAYOUTS["Q2_0"]))
    byte     bits 0-1  bits 2-3  bits 4-5  bits 6-7
    0, 1     the scale, float16
    2            w[0]      w[1]      w[2]      w[3]
    3            w[4]      w[5]      w[6]      w[7]
    ...
    17          w[60]     w[61]     w[62]     w[63]
    """
    units = int(layout.places[:, 0].max()) + 1
    held = [_weights(layout, unit) for unit in range(units)]
    steps = [tuple(np.subtract(b, a)) if len(a) == len(b) else None for a, b in pairwise(held)]
    rows: list[str] = []
    slots = _SLOTS.get(layout.coding, ("place 0", "place 1", "place 2", "place 3"))
    groups = layout.coding == "slots"  # of four weights: their bytes hold patterns, not places
    unit_name, first = ("group", 0) if groups else ("byte", layout.body.start)
    for unit, weights in enumerate(held):
        shown = unit < 2 or unit == units - 1 or steps[unit - 1] != steps[unit - 2]
        ends = not shown and steps[unit] != steps[unit - 1]
        if not (shown or ends):
            if rows[-1] != "...":
                rows.append("...")
            continue
        cells = "".join(f"{f'w[{weight}]':>10}" for weight in weights)
        rows.append(f"{first + unit:<7}{cells}")
    head = f"{unit_name:<7}" + "".join(f"{slot:>10}" for slot in slots)
    if layout.scale is not None:
        place = f"{'bytes ' if groups else ''}{layout.scale}, {layout.scale + 1}"
        line = f"{place:<9}{'  ' if groups else ''}the scale, float16"
        if layout.scale == 0:
            rows.insert(0, line)
        else:
            rows.append(line)
    return "\n".join([head, *rows])


def _weights(layout: Layout, unit: int) -> list[int]:
    """Return the weights of a byte, in the order of its slots."""
    own = np.flatnonzero(layout.places[:, 0] == unit)
    return [int(weight) for weight in own[np.argsort(layout.places[own, 1])]]
