"""What every part of steer speaks: types, errors, files. It imports nothing else of steer."""
