"""Losses that spread points over the unit sphere."""
