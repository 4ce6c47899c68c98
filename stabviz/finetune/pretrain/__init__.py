"""Pretraining: a small BERT from text alone."""
