"""The host's side: text to token ids to batches of numpy arrays.  No jax here."""
