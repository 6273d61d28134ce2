"""The command `archc`."""

from archc.cli.app import main

__all__ = ["main"]
