"""How fast a step is, where its time goes, and how that compares; needs jax, flax and optax alone.

`measuring.py` (what is timed, and how)  `breakdown.py` (where the time goes, from a profile)  `peer.py` (against Hugging Face)
`table.py` (for people)
"""
