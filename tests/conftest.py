"""Fixtures that more than one kind of test shares."""

pytest_plugins = ["rigs.fixtures"]
