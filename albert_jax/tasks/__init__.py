"""Fine-tuning tasks: the table of them (`table.py`), a module a family, their files and their metrics."""
