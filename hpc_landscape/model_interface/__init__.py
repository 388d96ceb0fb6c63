"""The names under which loss-landscapes' users know ``hpc_landscape.model``."""

from . import model_parameters, model_wrapper

__all__ = ["model_parameters", "model_wrapper"]
