"""The cost of an experiment, computed before it is launched.

`estimate.py` (memory, communication, time, warnings)  `compiled.py` (memory and collectives according to XLA)
`printing.py` (a plan as Markdown and JSON)
"""
