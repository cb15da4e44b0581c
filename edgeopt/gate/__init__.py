"""Judges a finished run by running its artifacts again: checks, policy, baseline, and what to do when it fails."""
