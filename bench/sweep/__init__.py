"""`latentevolve bench sweep`: runs of the stream that differ in one option, side by side."""
