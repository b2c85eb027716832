"""Evaluate a model on held-out rows: the numbers of training's validation, and its answers against the rows'."""
