"""How a diffusers pipeline is run: its loop, noise schedule, solver, VAE and denoisers."""
