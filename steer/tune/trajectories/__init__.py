"""Training on sampling runs: reward gradients and policy gradients. See docs/tune.md."""
