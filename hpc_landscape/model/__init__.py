"""Models: their parameters, their batch normalization, and the placement they are moved in."""
