"""Expressions of a graph as Python source: what operations print themselves with."""
