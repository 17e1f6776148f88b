"""ALBERT (arXiv 1909.11942) in JAX: pretraining, ablations and experiments.  Import the part you need: nothing heavy is loaded here."""

__version__ = "0.1.0"
