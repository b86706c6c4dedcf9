"""The parts of `latentevolve demo`."""
