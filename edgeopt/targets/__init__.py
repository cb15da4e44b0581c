"""Targets: one writes one format from graph and table, and reads back what it wrote. All of them: ``registry``."""
