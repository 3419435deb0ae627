"""Gromov problems: transport between clouds of different spaces, by the costs within each."""
