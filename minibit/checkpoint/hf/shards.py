"""A checkpoint's tensors, in one file or in shards: where each of them lies.

    model.safetensors              all of them, or else
    model.safetensors.index.json   {"weight_map": {"NAME": "model-00001-of-00002.safetensors"}}

An index is a stranger's text that names files, see `inside`. Pickled weights run any code that
their author wished for when they are opened: they never are.
"""

from __future__ import annotations

import re
from os.path import lexists
from pathlib import Path

from minibit.base import CheckpointError, read_json, shown
from minibit.checkpoint.safetensors import SafetensorsFile, Tensor

__all__ = ["Tensors", "inside", "open_tensors"]

Tensors = dict[str, tuple[SafetensorsFile, Tensor]]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MOST_INDEX = 1 << 24  # bytes
MOST_NAME = 255  # characters of a file's name: what file systems take


def open_tensors(folder: Path) -> Tensors:
    """Map the tensors of a checkpoint directory: by name the file that holds it, its place there.

    Raises `CheckpointError` if there are no safetensors, the index is damaged or names what is no
    file of this directory, or a shard is damaged or holds other tensors than the index says.
    """
    if lexists(folder / SINGLE):
        file = SafetensorsFile(inside(folder, SINGLE))
        return {name: (file, tensor) for name, tensor in file.tensors.items()}
    if not lexists(folder / INDEX):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            danger = "which can run any code and are never opened"
            message = f"pickled weights ({shown(pickled[0])}), {danger}; expected {SINGLE}"
            raise CheckpointError(message, folder)
        raise CheckpointError(f"neither {SINGLE} nor {INDEX}", folder)
    weight_map = _weight_map(inside(folder, INDEX))
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, set()).add(name)
    tensors: Tensors = {}
    for shard, promised in sorted(shards.items()):
        file = SafetensorsFile(inside(folder, shard))
        for name in sorted(promised ^ set(file.tensors)):
            has = "is not here, though the index says so"
            file.damage(has if name in promised else "is not in the index", name)
        tensors |= {name: (file, tensor) for name, tensor in file.tensors.items()}
    return tensors


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that may be read because it is part of a checkpoint's folder.

    The name, which a file gave, is of letters, digits, ``.``, ``_`` and ``-``, without directories.
    `CheckpointError` is raised if it is not, or leads out of the folder. The exception is a folder
    ``snapshots/REVISION`` of a Hugging Face cache: its files are links into ``blobs``.

    Examples
    --------
    >>> inside(Path("."), "../secret")
    Traceback (most recent call last):
        ...
    minibit.base.damage.CheckpointError: .: '../secret' is no plain file name
    """
    if len(name) > MOST_NAME or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise CheckpointError(f"{shown(name)} is no plain file name", folder)
    home = folder.resolve()
    parents = [home]
    if home.parent.name == "snapshots":
        parents.append(home.parent.parent / "blobs")
    try:
        target = (folder / name).resolve()
    except RuntimeError:  # how Python up to 3.12 says that links go round in a circle
        raise CheckpointError(f"{shown(name)} is a link to itself", folder) from None
    if target.parent not in parents:
        raise CheckpointError(f"{shown(name)} is a link out of the directory", folder)
    return folder / name


def _weight_map(path: Path) -> dict[str, str]:
    """Return the index: tensor name to file name, all of them safetensors."""
    weight_map = read_json(path, MOST_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(w, str) for w in weight_map.values()):
        raise CheckpointError("weight_map must map tensor names to file names", path)
    for name, shard in weight_map.items():
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"lies in {shown(shard)}: not a .safetensors file", path, name)
    return weight_map
