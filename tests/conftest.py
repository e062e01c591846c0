"""Settings that all tests share."""

import os

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

# Without the JIT, what multiplies, trains and replays is tested again; not what reads sources,
# draws the site, times kernels, begins processes that do the same work, or calls no kernel.
ONCE = "bench* chapters cli_cluster cluster_dask cluster_links compiling conform docs experiments"
ONCE += " layout plots ports results"
ONCE += " checks cluster_rounded costs counting datasets dual rules small strict_json whole_file"
if PLAIN:
    collect_ignore_glob = [f"test_{name}.py" for name in ONCE.split()]
    collect_ignore_glob += [f"base/test_{name}.py" for name in ONCE.split()]
