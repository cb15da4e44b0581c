"""The Core ML target: a float graph and its table of scales, written as an ML program through the MIL builder."""
