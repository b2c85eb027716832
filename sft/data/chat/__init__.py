"""Turn messages into token ids and loss weights, and prove that only what the model would sample is trained."""
