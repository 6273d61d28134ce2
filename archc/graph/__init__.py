"""Equations as typed operations on named axes."""
