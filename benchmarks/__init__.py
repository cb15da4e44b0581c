"""Speed and fidelity, measured beside the peers. `python -m benchmarks` runs all and rewrites the results in README.md."""
