"""Self-supervised reward signals and their weighted mean (DESIGN section 3)."""
