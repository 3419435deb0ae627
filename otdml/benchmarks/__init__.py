"""Experiments and speed tables: configuration and reports, no algorithms."""
