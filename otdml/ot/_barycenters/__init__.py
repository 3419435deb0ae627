"""Barycentres of measures: the solver, its two problems, and their derivatives."""
