"""Quantities of a model at a point."""

from ..data.data import Data
from .base import BatchMetric, DataMetric, Metric, MetricPipeline
from .criterion import Criterion
from .curvature import HessianTrace, PrincipalCurvatureEvaluator, hessian_eigenvectors
from .gradient import GradientNorm, GradientPredictiveness, LossGradient
from .perturbation import LossPerturbations
from .reinforcement import ExpectedReturnMetric
from .supervised import Accuracy, Loss, LossTerm

__all__ = [
    "Accuracy",
    "BatchMetric",
    "Criterion",
    "Data",
    "DataMetric",
    "ExpectedReturnMetric",
    "GradientNorm",
    "GradientPredictiveness",
    "HessianTrace",
    "Loss",
    "LossGradient",
    "LossTerm",
    "LossPerturbations",
    "Metric",
    "MetricPipeline",
    "PrincipalCurvatureEvaluator",
    "hessian_eigenvectors",
]
