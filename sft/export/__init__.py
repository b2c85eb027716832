"""Export trained weights as a model, an adapter or a .pt file, after a run (python -m sft.export)."""
