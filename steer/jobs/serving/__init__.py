"""A reward served to other processes: the application, and the process around it."""
