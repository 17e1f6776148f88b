"""The device's side of pretraining: sentence pairs, masks and losses, all jitted."""
