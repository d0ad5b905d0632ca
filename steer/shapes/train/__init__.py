"""Training of the bundled world, from nothing: `python -m steer.shapes.train`."""
