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
