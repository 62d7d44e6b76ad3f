"""Agent frameworks. Each adapter needs its framework and nothing else; import the one that is meant."""
