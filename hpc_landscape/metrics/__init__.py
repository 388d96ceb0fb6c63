"""Quantities of a model at a point."""

from .curvature import HessianTrace, PrincipalCurvatureEvaluator, hessian_eigenvectors
from .data import Data
from .gradient import GradientNorm, GradientPredictiveness, LossGradient
from .metric import BatchMetric, DataMetric, Metric, MetricPipeline
from .perturbation import LossPerturbations
from .reinforcement import ExpectedReturnMetric
from .supervised import Accuracy, Loss

__all__ = [
    "Accuracy",
    "BatchMetric",
    "Data",
    "DataMetric",
    "ExpectedReturnMetric",
    "GradientNorm",
    "GradientPredictiveness",
    "HessianTrace",
    "Loss",
    "LossGradient",
    "LossPerturbations",
    "Metric",
    "MetricPipeline",
    "PrincipalCurvatureEvaluator",
    "hessian_eigenvectors",
]
