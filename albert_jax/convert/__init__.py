"""Weights of other codebases: one name table each, no framework needed to read them."""
