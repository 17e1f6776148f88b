"""Host-side data code: text to token ids to batches of numpy arrays.  Does not use jax."""
