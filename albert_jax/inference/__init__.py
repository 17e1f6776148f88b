"""Predictions of a model on text, and views into it."""
