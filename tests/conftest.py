"""Settings that all tests share."""

import gc
import os
import sys
from fnmatch import fnmatch

import pytest
from hypothesis import HealthCheck, settings

PLAIN = os.environ.get("NUMBA_DISABLE_JIT") == "1"

# Compiling kernels and a busy machine make single examples slow without being wrong, so they have
# no deadline. Where tests run unattended, the same examples are drawn every time. Without the JIT
# they are fewer: it is the second time that the laws are tried, on the references alone.
calm = settings(
    deadline=None,
    max_examples=20 if PLAIN else 50,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("default", calm)
settings.register_profile("ci", calm, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Without the JIT, the whole suite tests again what multiplies, trains and replays; not what reads
# sources, draws the site, times kernels, begins processes that do the same work, calls no kernel,
# or takes the path of the references anyway, as each vector does. Of other files, it leaves out
# tests that have the mark `once`. A file that is named is run whole.
ONCE = "bench* chapters cli_cluster cluster_dask cluster_links compiling conform docs experiments"
ONCE += " layout plots ports results vectors writers"
ONCE += " checks cluster_rounded costs counting datasets dual logfile rules small strict_json"
ONCE += " whole_file"


def second_time(config):
    """Whether this is the whole suite without the JIT."""
    return PLAIN and config.args_source is config.ArgsSource.TESTPATHS


def pytest_ignore_collect(collection_path, config):
    """Leave out files the second time."""
    names = (fnmatch(collection_path.name, f"test_{name}.py") for name in ONCE.split())
    return True if second_time(config) and any(names) else None


def pytest_collection_modifyitems(config, items):
    """Leave out marked tests the second time."""
    if second_time(config):
        left_out = [item for item in items if item.get_closest_marker("once")]
        items[:] = [item for item in items if not item.get_closest_marker("once")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def lost_interrupts():
    """Let a finalizer that happens to run when a signal comes swallow what its handler raises.

    Python prints it and goes on. pytest would fail whichever test runs just then, and its hook may
    be cut short itself.
    """
    gc.collect()
    gc.disable()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _lost: None
    yield
    sys.unraisablehook = hook
    gc.enable()
