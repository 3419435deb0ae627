"""Optimal transport: points and weights in, a result out."""
