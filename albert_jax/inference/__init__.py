"""Predictions of a model for texts, and plots of its attention and hidden states."""
