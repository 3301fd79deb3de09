"""The backends, and which of them runs."""
