"""Training of the bundled world, from nothing: `python -m recipes.shapes_world`."""
