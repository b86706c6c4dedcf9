"""Benchmarks of the whole: quality over nights, serving, memory and one refinement step.

May import every other package and is imported by none.
"""
