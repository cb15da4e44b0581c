"""Runtimes: one file runs one format. They import nothing of edgeopt and raise built-in errors (callers wrap them):
a runtime and the agent are all that travels to a device."""
