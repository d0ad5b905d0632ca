"""Everything that knows diffusers: the loop, the grid, the solver, decoding, denoisers."""
