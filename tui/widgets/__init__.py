"""What Textual has no widget for."""
