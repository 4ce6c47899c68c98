"""See why language-model training breaks, and learn to keep it up."""

__version__ = "0.1.0"
