"""The meaning of calls about adapters and checkpoints, whose files are among the arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minibit.conformance.exact.checkpoint import stored_tensors
from minibit.conformance.file_protocols import file_of

__all__ = ["ADAPTERS"]


def parts_of(params: Any) -> Any:
    """Return parameters by name: codes and scale of a ternary matrix, the rest as it is."""
    return {
        name: [w.codes(), np.float32(w.scale)] if hasattr(w, "codes") else np.array(w)
        for name, w in params.items()
    }


def load_bitnet(offered: Any, config: str, file: Any) -> Any:
    """Return the parameters of a directory of two files, and two of the configuration's numbers."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        (Path(folder) / "model.safetensors").write_bytes(np.asarray(file, np.uint8).tobytes())
        model = offered.load_bitnet(folder)
        return parts_of(model.params), model.config.rms_eps, model.config.rope_theta


def save_bitnet(offered: Any, model: Any, **args: Any) -> Any:
    """Return the tensors of the file by name; bfloat16 as bits."""
    with TemporaryDirectory() as folder:
        offered.save_bitnet(model, Path(folder) / "model", **args)
        return stored_tensors((Path(folder) / "model" / "model.safetensors").read_bytes())


def load_gguf(offered: Any, file: Any, **args: Any) -> Any:
    """Return the parameters of a file, and two of the configuration's numbers."""
    with file_of(file, "model.gguf") as path:
        model = offered.load_gguf(path, **args)
        return parts_of(model.params), model.config.rms_eps, model.config.rope_theta


def save_gguf(offered: Any, model: Any, **args: Any) -> Any:
    """Return what the header of the file says of each tensor, and its bytes."""
    with TemporaryDirectory() as folder:
        offered.save_gguf(model, Path(folder) / "model.gguf", **args)
        header = offered.checkpoint.open_gguf(Path(folder) / "model.gguf")
        return {
            name: [tensor.kind, [*tensor.shape], header.bytes_of(tensor).copy()]
            for name, tensor in header.tensors.items()
        }


def load_adapters(offered: Any, config: str, file: Any) -> Any:
    """Return the adapters by name, and the settings' JSON as text with sorted keys."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_text(config, encoding="utf-8")
        path = Path(folder) / "adapter_model.safetensors"
        path.write_bytes(np.asarray(file, np.uint8).tobytes())
        adapters, settings = offered.load_adapters(folder)
    return adapters, json.dumps(settings, sort_keys=True)


def with_adapters(offered: Any, params: Any, adapters: Any, **args: Any) -> Any:
    """Return the parameters with their adapters merged."""
    return dict(offered.merge(offered.with_adapters(params, adapters, **args)))


ADAPTERS: dict[str, Callable[..., Any]] = {
    "load_adapters": load_adapters,
    "load_bitnet": load_bitnet,
    "load_gguf": load_gguf,
    "save_bitnet": save_bitnet,
    "save_gguf": save_gguf,
    "with_adapters": with_adapters,
}
