"""The `latentevolve` command."""
