"""vLLM: starting it, the hooks into it, and the checks of those hooks."""
