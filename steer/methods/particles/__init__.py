"""Weighted or branching particles along the trajectory: SMC, beams, trees."""
