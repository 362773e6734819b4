"""Hypothesis profiles: a quick one by default, the full count in continuous integration."""

import os

from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,  # the machine is shared: a pause is no fault
    "suppress_health_check": [HealthCheck.too_slow],
    "derandomize": True,
    "database": None,
}
settings.register_profile("quick", max_examples=500, **_COMMON)
settings.register_profile("full", max_examples=2_000, **_COMMON)
settings.load_profile("full" if os.environ.get("CI") else "quick")
