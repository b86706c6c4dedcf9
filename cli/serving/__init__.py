"""The supervised tree behind `latentevolve serve`."""
