"""Pretraining: sentence pairs, masks, losses, and the job that runs them."""
