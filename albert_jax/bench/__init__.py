"""How fast a training step is, where its time goes, and how it compares with Hugging Face's.

`measure.py` (time a step)  `breakdown.py` (time by kind of work, from a profile)  `peer.py` (the same work in torch)

Runs where only jax, flax, optax and numpy are installed, such as on a bare GPU machine.
"""
