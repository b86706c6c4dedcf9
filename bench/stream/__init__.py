"""Does the loop make the model better at its workload? Days, nights, and arms of equal questions."""
