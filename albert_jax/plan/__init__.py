"""What an experiment will take, before it is launched.

`planning.py` (the plan and what looks wrong)  `footprint.py` (memory and traffic, on paper)  `compiled.py` (what XLA says)
`table.py` (for people)
"""
