"""One file for each reward model."""
