"""Where the dashboard's pictures come from. Screens know the protocol alone."""
