"""`latentevolve bench step`: what one optimisation step costs, beside LatentSeek's."""

QUESTION = (
    "A baker fills 14 trays with 12 rolls each, sells three quarters of them before noon and 20 after it. "
    "How many rolls are left? Explain each step."
)
"""What is asked unless told otherwise."""
