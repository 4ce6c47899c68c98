"""What a model is worth. Imports nothing of ours."""
