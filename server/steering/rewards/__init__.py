"""Reward signals, which need no labels, and their weighted mean."""
