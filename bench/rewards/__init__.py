"""How well does each reward signal tell right answers from wrong ones? Measured against labels."""
