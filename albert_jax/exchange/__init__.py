"""Read and write checkpoints of Hugging Face, Google and albert_jax."""

FORMATS = ("huggingface", "albert_jax", "stablehlo")
"""The formats that `convert` writes."""
