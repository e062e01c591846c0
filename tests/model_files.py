"""What the tests of model files share: a model to write, the ways to store it, and equality."""

from dataclasses import replace

import numpy as np

from minibit.checkpoint import save_bitnet
from minibit.checkpoint.hf.config import Storage
from minibit.ternary import TernaryMatrix
from minibit.transformer import BitNetModel, float_linear, init_params, param_shapes

WAYS = {  # of a Hugging Face directory
    "bitlinear": Storage("bitlinear"),
    "offline": Storage("autobitlinear", "offline"),
    "online": Storage("autobitlinear", "online"),
    "float": Storage(None),
}


def model_with_gains(config, seed):
    """Random master weights, and gains that are not all 1."""
    rng = np.random.default_rng(seed)
    params = init_params(config, seed)
    for name, shape in param_shapes(config).items():
        if len(shape) == 1:
            params[name] = (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    return BitNetModel(config, params)


def save(model, folder, way="bitlinear"):
    """Write a model in one of the four `WAYS`; return the folder."""
    storage = WAYS[way]
    model = replace(model, linear=float_linear) if way == "float" else model
    save_bitnet(model, folder, linear_class=storage.linear_class, quantization_mode=storage.mode)
    return folder


def assert_equal(one, other, name=""):
    """Two parameters are the same, bit for bit."""
    assert type(one) is type(other), name
    if isinstance(one, TernaryMatrix):
        assert one.shape == other.shape, name
        np.testing.assert_array_equal(one.scale, other.scale, err_msg=name)
        one, other = one.codes(), other.codes()
    assert one.dtype == other.dtype, name
    np.testing.assert_array_equal(one, other, err_msg=name)


def assert_same(ours, theirs):
    """Two models have the same configuration, and the same parameters bit for bit."""
    assert ours.config == theirs.config
    assert list(ours.params) == list(theirs.params)
    for name, value in ours.params.items():
        assert_equal(value, theirs.params[name], name)
