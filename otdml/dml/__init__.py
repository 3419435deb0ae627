"""Proxy-based metric learning: losses, the NIR head, sampling, retrieval metrics, and the training module."""
