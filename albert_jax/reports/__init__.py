"""Curves, tables and figures of finished runs."""
