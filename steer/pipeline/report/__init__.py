"""The page, the plots and the tables that show how a run went."""
