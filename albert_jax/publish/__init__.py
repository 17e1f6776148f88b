"""Publishing a run on the Hugging Face hub: its model card, and its checkpoints as revisions."""
