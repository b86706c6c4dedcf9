"""Settings of every process, and the queue between gateway and worker."""
