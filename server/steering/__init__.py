"""What happens to a request between its rendering and its decoding."""
