"""Answers of a model directory: one prompt, a file of them, or a conversation."""
