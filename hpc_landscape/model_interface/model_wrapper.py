"""loss-landscapes' module of this name: model wrappers."""

from ..model.wrapper import GeneralModelWrapper, ModelWrapper, SimpleModelWrapper, wrap_model

__all__ = ["GeneralModelWrapper", "ModelWrapper", "SimpleModelWrapper", "wrap_model"]
