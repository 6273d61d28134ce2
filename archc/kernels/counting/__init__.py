"""What kernels move and compute, counted exactly in Triton's interpreter, and memory watched meanwhile."""
