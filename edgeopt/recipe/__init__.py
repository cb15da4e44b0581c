"""What the user asks for, typed: from a YAML file or from the command line, the same ``Recipe``."""
