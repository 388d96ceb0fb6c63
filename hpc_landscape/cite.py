"""What to cite, as BibTeX: the method, this program, and what a run's settings use. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from . import __version__
from .errors import UserError, printable
from .kinds import DIRECTIONS, METRICS, NORMALIZATIONS, PROBLEMS
from .registry import Registry
from .words import split

# Plain ASCII, as every BibTeX reads it.
BIBTEX = r"""
@inproceedings{li2018visualizing,
  author    = {Li, Hao and Xu, Zheng and Taylor, Gavin and Studer, Christoph and Goldstein, Tom},
  title     = {Visualizing the Loss Landscape of Neural Nets},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {31},
  year      = {2018},
  eprint    = {1712.09913},
  archiveprefix = {arXiv}
}

@misc{hpc_landscape,
  author    = {{the hpc\_landscape authors}},
  title     = {{hpc\_landscape}},
  note      = {Loss landscapes of PyTorch models, as an MPI-parallel batch program. Version VERSION},
  year      = {2026}
}

@inproceedings{ansel2024pytorch,
  author    = {Ansel, Jason and Yang, Edward and He, Horace and Gimelshein, Natalia and Jain, Animesh and
               Voznesensky, Michael and Bao, Bin and Bell, Peter and Berard, David and Burovski, Evgeni and
               Chauhan, Geeta and Chourdia, Anjali and Constable, Will and Desmaison, Alban and DeVito, Zachary and
               Ellison, Elias and Feng, Will and Gong, Jiong and Gschwind, Michael and Hirsh, Brian and
               Huang, Sherlock and Kalambarkar, Kshiteej and Kirsch, Laurent and Lazos, Michael and Lezcano, Mario and
               Liang, Yanbo and Liang, Jason and Lu, Yinghai and Luk, CK and Maher, Bert and Pan, Yunjie and
               Puhrsch, Christian and Reso, Matthias and Saroufim, Mark and Siraichi, Marcos Yukio and Suk, Helen and
               Suo, Michael and Tillet, Phil and Wang, Eikan and Wang, Xiaodong and Wen, William and
               Zhang, Shunting and Zhao, Xu and Zhou, Keren and Zou, Richard and Mathews, Ajit and
               Chanan, Gregory and Wu, Peng and Chintala, Soumith},
  title     = {{PyTorch} 2: Faster Machine Learning Through Dynamic {Python} Bytecode Transformation and Graph
               Compilation},
  booktitle = {29th ACM International Conference on Architectural Support for Programming Languages and Operating
               Systems, Volume 2 (ASPLOS '24)},
  publisher = {ACM},
  year      = {2024},
  doi       = {10.1145/3620665.3640366}
}

@misc{hdf5,
  author    = {{The HDF Group}},
  title     = {Hierarchical Data Format, version 5},
  howpublished = {https://github.com/HDFGroup/hdf5}
}

@book{collette2013python,
  author    = {Collette, Andrew},
  title     = {{Python} and {HDF5}},
  publisher = {O'Reilly},
  year      = {2013}
}

@article{dalcin2021mpi4py,
  author    = {Dalcin, Lisandro and Fang, Yao-Lung L.},
  title     = {{mpi4py}: Status Update After 12 Years of Development},
  journal   = {Computing in Science \& Engineering},
  volume    = {23},
  number    = {4},
  pages     = {47--54},
  year      = {2021},
  doi       = {10.1109/MCSE.2021.3083216}
}

@misc{alpaydin1998optical,
  author    = {Alpaydin, E. and Kaynak, C.},
  title     = {Optical Recognition of Handwritten Digits},
  howpublished = {UCI Machine Learning Repository},
  year      = {1998},
  doi       = {10.24432/C50P49}
}

@inproceedings{he2016deep,
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  title     = {Deep Residual Learning for Image Recognition},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {770--778},
  year      = {2016},
  doi       = {10.1109/CVPR.2016.90}
}

@inproceedings{goodfellow2015qualitatively,
  author    = {Goodfellow, Ian J. and Vinyals, Oriol and Saxe, Andrew M.},
  title     = {Qualitatively Characterizing Neural Network Optimization Problems},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2015},
  eprint    = {1412.6544},
  archiveprefix = {arXiv}
}

@inproceedings{frankle2020linear,
  author    = {Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel M. and Carbin, Michael},
  title     = {Linear Mode Connectivity and the Lottery Ticket Hypothesis},
  booktitle = {International Conference on Machine Learning (ICML)},
  series    = {Proceedings of Machine Learning Research},
  volume    = {119},
  pages     = {3259--3269},
  year      = {2020},
  eprint    = {1912.05671},
  archiveprefix = {arXiv}
}

@article{pearlmutter1994fast,
  author    = {Pearlmutter, Barak A.},
  title     = {Fast Exact Multiplication by the {Hessian}},
  journal   = {Neural Computation},
  volume    = {6},
  number    = {1},
  pages     = {147--160},
  year      = {1994},
  doi       = {10.1162/neco.1994.6.1.147}
}

@article{wu2000thick,
  author    = {Wu, Kesheng and Simon, Horst},
  title     = {Thick-Restart {Lanczos} Method for Large Symmetric Eigenvalue Problems},
  journal   = {SIAM Journal on Matrix Analysis and Applications},
  volume    = {22},
  number    = {2},
  pages     = {602--616},
  year      = {2000},
  doi       = {10.1137/S0895479898334605}
}

@article{hutchinson1989stochastic,
  author    = {Hutchinson, M. F.},
  title     = {A Stochastic Estimator of the Trace of the Influence Matrix for {Laplacian} Smoothing Splines},
  journal   = {Communications in Statistics - Simulation and Computation},
  volume    = {18},
  number    = {3},
  pages     = {1059--1076},
  year      = {1989},
  doi       = {10.1080/03610918908812806}
}

@inproceedings{santurkar2018how,
  author    = {Santurkar, Shibani and Tsipras, Dimitris and Ilyas, Andrew and Madry, Aleksander},
  title     = {How Does Batch Normalization Help Optimization?},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {31},
  year      = {2018},
  eprint    = {1805.11604},
  archiveprefix = {arXiv}
}

@inproceedings{ahmed2019understanding,
  author    = {Ahmed, Zafarali and {Le Roux}, Nicolas and Norouzi, Mohammad and Schuurmans, Dale},
  title     = {Understanding the Impact of Entropy on Policy Optimization},
  booktitle = {International Conference on Machine Learning (ICML)},
  series    = {Proceedings of Machine Learning Research},
  volume    = {97},
  pages     = {151--160},
  year      = {2019},
  eprint    = {1811.11214},
  archiveprefix = {arXiv}
}

@misc{towers2024gymnasium,
  author    = {Towers, Mark and Kwiatkowski, Ariel and Terry, Jordan and Balis, John U. and {De Cola}, Gianluca and
               Deleu, Tristan and Goul{\~a}o, Manuel and Kallinteris, Andreas and Krimmel, Markus and KG, Arjun and
               others},
  title     = {Gymnasium: A Standard Interface for Reinforcement Learning Environments},
  year      = {2024},
  eprint    = {2407.17032},
  archiveprefix = {arXiv}
}

@inproceedings{ioffe2015batch,
  author    = {Ioffe, Sergey and Szegedy, Christian},
  title     = {Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift},
  booktitle = {International Conference on Machine Learning (ICML)},
  series    = {Proceedings of Machine Learning Research},
  volume    = {37},
  pages     = {448--456},
  year      = {2015},
  eprint    = {1502.03167},
  archiveprefix = {arXiv}
}

@inproceedings{izmailov2018averaging,
  author    = {Izmailov, Pavel and Podoprikhin, Dmitrii and Garipov, Timur and Vetrov, Dmitry and
               Wilson, Andrew Gordon},
  title     = {Averaging Weights Leads to Wider Optima and Better Generalization},
  booktitle = {Conference on Uncertainty in Artificial Intelligence (UAI)},
  year      = {2018},
  eprint    = {1803.05407},
  archiveprefix = {arXiv}
}
"""
_entries = BIBTEX.strip().replace("VERSION", __version__).split("\n\n")
ENTRIES = {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in _entries}

_EIGENVALUES = ("pearlmutter1994fast", "wu2000thick")
# What a kind is from; those that are not here are of the method's paper, or of nobody's.
SOURCES: dict[tuple[Registry, str], tuple[str, ...]] = {
    (PROBLEMS, "digits"): ("alpaydin1998optical", "he2016deep"),
    (DIRECTIONS, "interpolation"): ("goodfellow2015qualitatively", "frankle2020linear"),
    (DIRECTIONS, "hessian"): _EIGENVALUES,
    (METRICS, "curvature"): _EIGENVALUES,
    (METRICS, "hessian_trace"): ("pearlmutter1994fast", "hutchinson1989stochastic"),
    (METRICS, "gradient_predictiveness"): ("santurkar2018how",),
    (METRICS, "loss_perturbations"): ("ahmed2019understanding",),
    (METRICS, "expected_return"): ("towers2024gymnasium",),
    (NORMALIZATIONS, "warmup"): ("ioffe2015batch", "izmailov2018averaging"),
    (NORMALIZATIONS, "running"): ("ioffe2015batch",),
    (NORMALIZATIONS, "batch"): ("ioffe2015batch",),
}


def citations(settings: Mapping[str, object], ranks: int = 1, stored: bool = False) -> str:
    """What a run with these settings is to cite, as BibTeX; above each entry a comment that says what it is for.

    Args:
        settings: problem, directions, metrics and bn, as their options take them; what is none of these is left out.
        ranks: more than one, and MPI is cited, too.
        stored: whether the settings are a file's: no code is run that it names. Else kinds of the user's own are
            loaded, which say what they are from by an attribute ``cites``, BibTeX.

    Raises:
        UserError: a kind of the user's own cannot be loaded.
    """
    reasons: dict[str, list[str]] = {
        "li2018visualizing": ["the method"],
        "hpc_landscape": ["this program"],
        "ansel2024pytorch": ["what it computes with"],
        "hdf5": ["the file"],
        "collette2013python": ["the file"],
    }
    if ranks > 1:
        reasons["dalcin2021mpi4py"] = ["several ranks"]
    for registry, spec in _kinds(settings):
        why = printable(f"{registry.option} {_name(spec)}")
        if registry is NORMALIZATIONS and not stored:
            why += ", where the model has such layers"
        for key in _sources(registry, spec, stored):
            reasons.setdefault(key, []).append(why)
    return "\n".join(f"% {', '.join(why)}\n{ENTRIES.get(key, key)}\n" for key, why in reasons.items())


def _kinds(settings: Mapping[str, object]) -> Iterator[tuple[Registry, str]]:
    """The kinds that the settings name."""
    for registry in (PROBLEMS, DIRECTIONS, METRICS, NORMALIZATIONS):
        value = settings.get(registry.option.removeprefix("--"))
        if isinstance(value, str):
            yield from ((registry, spec) for spec in (split(value) if registry is METRICS else [value]))


def _name(spec: str) -> str:
    return spec.partition("(")[0].strip()


def _sources(registry: Registry, spec: str, stored: bool) -> Iterable[str]:
    """Keys of entries; or BibTeX, of what is not built in."""
    name = _name(spec)
    if registry is METRICS and ":" not in name and name not in registry:  # of several sets: train_curvature
        name = next((known for known in registry.built_in if name.endswith(f"_{known}")), name)
    if name in registry.built_in:
        return SOURCES.get((registry, name), ())
    if stored and name not in registry:
        return ()
    try:
        cites = getattr(registry.load(name), "cites", "")
    except UserError:
        if ":" in name and not stored:
            raise
        return ()  # the problem brings it, or a package that cannot be imported
    return [cites.strip()] if isinstance(cites, str) and cites.strip() else ()
