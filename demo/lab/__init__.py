"""The quality lab: the paper's ablations, measured in the emoji world."""
