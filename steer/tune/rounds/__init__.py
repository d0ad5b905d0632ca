"""On-policy tuning: sample, score, train, repeat. See docs/tune.md."""
