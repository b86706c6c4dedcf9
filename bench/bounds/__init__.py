"""`latentevolve bench bounds`: what else could have been learned from the answers that a night kept."""
