"""Let a model directory answer: one prompt, a file of them, or a conversation."""
