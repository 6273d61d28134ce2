"""Triton kernels: what a package for a GPU holds besides its torch form, and whether it fits the target."""
