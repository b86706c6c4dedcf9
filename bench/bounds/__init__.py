"""`latentevolve bench bounds`: what else could have been learned from the questions of a night."""
