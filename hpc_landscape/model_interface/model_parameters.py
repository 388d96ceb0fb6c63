"""loss-landscapes' module of this name: parameters as vectors."""

from ..model.parameters import ModelParameters, orthogonal_to, rand_n_like, rand_u_like

__all__ = ["ModelParameters", "orthogonal_to", "rand_n_like", "rand_u_like"]
