"""`latentevolve bench memory`: what remembering costs at growing sizes."""
