"""Types, errors, files and small helpers that all of steer uses; imports nothing else of steer."""
