"""Passes that change weights: one training engine, and what is done with it. They run where torch may be loaded."""
