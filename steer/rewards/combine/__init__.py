"""Rewards made of rewards: weighted sums, ranks, minima, presets."""
