"""Speed and fidelity, measured beside the peers: `python -m benchmarks` runs all and rewrites README.md's results."""
