"""Decide which samples a step trains, which rank computes them, and cut them into micro-batches."""
