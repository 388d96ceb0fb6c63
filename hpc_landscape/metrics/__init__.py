"""Quantities of a model at a point."""

from .metric import BatchMetric, Metric
from .supervised import Accuracy, Loss

__all__ = ["Accuracy", "BatchMetric", "Loss", "Metric"]
