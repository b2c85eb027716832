"""See what a run would train, before any GPU is used: `python -m sft.inspect <the overrides of the trainer>`."""
