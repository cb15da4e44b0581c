"""Hardware profiles, and what they predict for a model that was never run on the device."""
