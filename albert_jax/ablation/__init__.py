"""Ablations: tables of experiments (table.py), budgets (budget.py), plans (planning.py, manifest.py) and runs (run.py)."""

from albert_jax.ablation.table import Ablation, At, Row, at

__all__ = ["Ablation", "At", "Row", "at"]
