"""Docker containers as sessions: the engine (find, inspect, events), and what follows what it says."""
