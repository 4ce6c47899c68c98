"""The training of one run: the loop, its guards, checkpoints, optimizer and record."""
