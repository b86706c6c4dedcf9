"""Spending compute on one request: votes, calibrated choices, and latents that are searched for."""
