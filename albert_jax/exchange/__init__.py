"""Read and write checkpoints of Hugging Face, Google and albert_jax."""
