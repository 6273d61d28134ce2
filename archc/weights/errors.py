"""What is wrong with a file of weights, or with the list of names that reads it."""

from __future__ import annotations


class WeightsError(Exception):
    """The file cannot be read, or does not hold what its kind promises. The message says what to do."""
