"""The frozen language model as day and night both see it."""
