"""Models: their parameters, their batch normalization, and the subspace they are moved in."""
