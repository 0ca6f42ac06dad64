"""Shared by all Python tests: one fixed hypothesis profile, so that a run can be repeated exactly."""

from hypothesis import HealthCheck, settings

# Examples are a function of the test alone; the profile "search" looks for new ones.
unhurried = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", unhurried, derandomize=True)
settings.register_profile("search", unhurried)
settings.load_profile("fixed")


def pytest_report_header():
    return "attention cases: seed 0; hypothesis: derandomized unless --hypothesis-profile=search --hypothesis-seed=N"
