"""What the dashboard knows and how it says it. Pure: messages in, rows and texts out; no screen, no connection."""
