"""Losses between distributions: one file, one idea, one function and one Module."""
