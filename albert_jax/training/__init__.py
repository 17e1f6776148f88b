"""The train loop and all that it needs; knows neither model nor data."""
