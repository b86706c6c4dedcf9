"""The night: consolidation of remembered episodes into a latent prior."""
