"""For unit tests: properties hold however long an example takes, which says nothing on a machine that others use."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("corral", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("corral")
