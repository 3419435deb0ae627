"""Kernels for GPUs, in Triton, that fuse a cost with what is made of it: for engines, and for sums of kernels."""
