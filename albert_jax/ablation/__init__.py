"""Ablations: tables of experiments as data (table.py), what is held equal (budget.py), every row decided (planning.py)."""

from albert_jax.ablation.table import Ablation, At, Row, at

__all__ = ["Ablation", "At", "Row", "at"]
