"""Directions in parameter space, by parameter name."""
