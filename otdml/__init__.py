"""Optimal transport for PyTorch, with distribution losses and proxy-based metric learning."""

__version__ = "0.1.0"
