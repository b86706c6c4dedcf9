"""`latentevolve bench step`: what one optimisation step costs, beside LatentSeek's."""
