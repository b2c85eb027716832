"""Write a model as a Hugging Face directory, and check what was written."""
