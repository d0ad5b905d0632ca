"""Corrections of the model output on the way: gradients, best-of-N, lookahead."""
