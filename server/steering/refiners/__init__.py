"""Two ways to improve a latent for one request, behind one interface."""
