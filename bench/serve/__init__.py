"""`latentevolve bench serve`: the steered server beside bare vLLM."""
