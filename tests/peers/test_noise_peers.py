"""Philox and the noise contract against implementations that share no code with ours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibit.noise import philox4x32, words

pytestmark = pytest.mark.peers

word32 = st.integers(0, 2**32 - 1)


def counters(first, number):
    """Return `number` counters from `first` on, as one 128-bit little-endian integer each."""
    start = sum(word << 32 * i for i, word in enumerate(first))
    return [[((start + n) % 2**128 >> 32 * i) % 2**32 for i in range(4)] for n in range(number)]


@settings(max_examples=25, deadline=None)
@given(st.tuples(word32, word32, word32, word32))
def test_philox_equals_that_of_xla(state):
    """XLA keeps (key, counter low) in its state, and the key again in the counter's high half."""
    jax = pytest.importorskip("jax")
    _, theirs = jax.lax.rng_bit_generator(
        np.array(state, np.uint32),
        (12,),
        dtype=np.uint32,
        algorithm=jax.lax.RandomAlgorithm.RNG_PHILOX,
    )
    ours = philox4x32(counters([state[2], state[3], state[0], state[1]], 3), state[:2])
    np.testing.assert_array_equal(np.asarray(theirs), ours.reshape(-1))


@settings(max_examples=25, deadline=None)
@given(st.tuples(word32, word32, word32, word32), st.tuples(word32, word32))
def test_philox_equals_that_of_randomgen(counter, key):
    """Any key and counter; like NumPy's, its generator counts up before the first output."""
    randomgen = pytest.importorskip("randomgen")
    generator = randomgen.Philox(
        counter=sum(word << 32 * i for i, word in enumerate(counter)),
        key=key[0] | key[1] << 32,
        number=4,
        width=32,
    )
    theirs = generator.random_raw(12)
    np.testing.assert_array_equal(theirs, philox4x32(counters(counter, 4)[1:], key).reshape(-1))


def test_a_stream_is_what_xla_draws_from_the_same_seed_where_the_layouts_meet():
    """XLA's counter ends in the key; a stream of lane and step equal to the key's halves."""
    jax = pytest.importorskip("jax")
    seed = 0x0123456789ABCDEF
    low, high = seed % 2**32, seed // 2**32
    _, theirs = jax.lax.rng_bit_generator(
        np.array([low, high, 0, 2 << 24], np.uint32),
        (100,),
        dtype=np.uint32,
        algorithm=jax.lax.RandomAlgorithm.RNG_PHILOX,
    )
    np.testing.assert_array_equal(np.asarray(theirs), words(seed, 2, high, 100, lane=low))
