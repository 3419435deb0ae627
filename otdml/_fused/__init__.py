"""GPU kernels in Triton that fuse costs with soft minima, plan products and sums of kernels."""
