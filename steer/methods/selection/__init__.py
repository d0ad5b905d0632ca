"""Draw several, keep the best: best-of-N, pruning, gates, budgets."""
