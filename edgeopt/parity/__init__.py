"""Is what was built what was asked for? Always on the artifact, on its own runtime, on real samples.

``levels`` has the three levels of a conversion, ``models`` compares any two models, ``localize`` names the layer.
"""
