"""Passes on the graph: one pass, one class, one file. Those that a recipe can name: ``registry``."""
