"""Fixtures of all tests."""

from hypothesis import HealthCheck, settings

# A law holds or it does not: how long an example takes on a busy machine says nothing of it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
