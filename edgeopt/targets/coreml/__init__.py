"""Core ML: an ML program from graph and table through the MIL builder, without a second PyTorch conversion."""

from edgeopt.targets.coreml.target import CoremlTarget

__all__ = ["CoremlTarget"]
