"""The kinds that there are, by name: a row here, and a file of its own, is all that one needs. Imports none of them."""

from __future__ import annotations

from .registry import Registry

PROBLEMS = Registry(
    "problem",
    "--problem",
    {"digits": "hpc_landscape.problems.digits:digits"},
    group="hpc_landscape.problems",
    own="package.module:factory, path/file.py:factory",
)

DIRECTIONS = Registry(
    "direction",
    "--directions",
    {
        "random": "hpc_landscape.directions.random:Random",
        "interpolation": "hpc_landscape.directions.interpolation:Interpolation",
        "pca": "hpc_landscape.directions.pca:PCA",
        "hessian": "hpc_landscape.directions.hessian:Hessian",
        "file": "hpc_landscape.directions.file:File",
    },
    group="hpc_landscape.directions",
    own="file.py:MyDirections",
)

METRICS = Registry(
    "metric",
    "--metrics",
    {
        "loss": "hpc_landscape.metrics.supervised:Loss",
        "accuracy": "hpc_landscape.metrics.supervised:Accuracy",
        "loss_gradient": "hpc_landscape.metrics.gradient:LossGradient",
        "gradient_norm": "hpc_landscape.metrics.gradient:GradientNorm",
        "gradient_predictiveness": "hpc_landscape.metrics.gradient:GradientPredictiveness",
        "loss_perturbations": "hpc_landscape.metrics.perturbation:LossPerturbations",
        "curvature": "hpc_landscape.metrics.curvature:PrincipalCurvatureEvaluator",
        "hessian_trace": "hpc_landscape.metrics.curvature:HessianTrace",
        "expected_return": "hpc_landscape.metrics.reinforcement:ExpectedReturnMetric",
    },
    group="hpc_landscape.metrics",
    own="file.py:MyMetric",
    given=("inputs", "target", "data", "loss_fn", "ignore_index", "problem", "env"),
)

VIEWS = Registry(
    "kind of picture",
    "--kind",
    {
        "contour": "hpc_landscape.view.contour:Contour",
        "surface": "hpc_landscape.view.surface:Surface",
        "heatmap": "hpc_landscape.view.heatmap:Heatmap",
        "line": "hpc_landscape.view.line:Line",
    },
    group="hpc_landscape.views",
    own="file.py:MyPicture",
)

NORMALIZATIONS = Registry(
    "policy for batch normalization",
    "--bn",
    {
        "warmup": "hpc_landscape.evaluate.normalization:WarmUp",
        "running": "hpc_landscape.evaluate.normalization:Running",
        "batch": "hpc_landscape.evaluate.normalization:Batch",
    },
    group="hpc_landscape.normalizations",
    own="file.py:MyPolicy",
    given=("data",),
)

KINDS = (PROBLEMS, DIRECTIONS, METRICS, NORMALIZATIONS, VIEWS)
