"""The command line: `steer sample`, `score`, `convert`, `report`, `rewards`."""
