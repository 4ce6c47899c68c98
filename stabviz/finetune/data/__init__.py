"""The rows of a run: where they come from, how they are split, encoded and put into batches."""
