"""Work on folders that can be interrupted and resumed; no command line in here."""
