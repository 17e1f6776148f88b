"""Checkpoints of Hugging Face and Google, in and out."""
