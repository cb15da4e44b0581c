"""Measurements of artifacts: how fast they run."""
