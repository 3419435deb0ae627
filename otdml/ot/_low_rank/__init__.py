"""Couplings of low rank: points go by way of a few hubs."""
