"""A trained model on held-out rows: the numbers of training's validation, and its answers compared with the rows'."""
