"""The command line: `steer sample`, `steer report`, `steer rewards`."""
