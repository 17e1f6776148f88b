"""Copies of the experiments as starting points.  The link `experiments` makes them a part of the installed package."""
