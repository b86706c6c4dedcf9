"""The day: an OpenAI-compatible gateway that recalls, refines and remembers latents."""
