"""Settings that all tests share."""

import os

from hypothesis import HealthCheck, settings

# Compiling kernels and a busy machine make single examples slow without being wrong, so they have
# no deadline. Where tests run unattended, the same examples are drawn every time.
calm = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("default", calm)
settings.register_profile("ci", calm, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Without the JIT, what multiplies, trains and replays is tested again; not what reads sources,
# draws the site, times kernels, or begins processes that do the same work.
ONCE = "bench* chapters cli_cluster cluster_dask cluster_links conform docs experiments layout"
ONCE += " plots ports results"
if os.environ.get("NUMBA_DISABLE_JIT") == "1":
    collect_ignore_glob = [f"test_{name}.py" for name in ONCE.split()]
