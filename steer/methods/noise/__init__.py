"""Search and optimisation of the initial noise."""
