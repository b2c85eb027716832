"""Trained weights -> a Hugging Face directory, while a run saves (model.py) or after it (python -m sft.export)."""
