# SPDX-License-Identifier: Apache-2.0
"""How well a line tells the classes of a graph's nodes apart, as papers on graphs report it; and a map of the nodes."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits  # which scikit-learn brings
from torch import Tensor

from common.graphs.data import Graph
from common.images.pictures import STYLE, plt

STRENGTHS = 4.0 ** np.arange(-2, 7)  # of the regression's C
LABELLED, VALIDATION = 0.1, 0.1  # shares of the nodes in a random split
SHOWN = 2000  # nodes of a map
MIDDLE = 50  # dimensions that a map starts from


def accuracies(features: Any, y: Any, train: Any, val: Any, test: Any) -> tuple[float, float]:
    """Of a logistic regression on unit features, on ``val``, which chooses its C, and on ``test``."""
    unit = normalize(features)
    best: tuple[float, Any] = (-1.0, None)
    with threadpool_limits(1, user_api="blas"):  # the products are small; one thread is repeatable
        for c in STRENGTHS:
            line = LogisticRegression(C=c, max_iter=1000).fit(unit[train], y[train])
            if (found := line.score(unit[val], y[val])) > best[0]:
                best = found, line
        return float(best[0]), float(best[1].score(unit[test], y[test]))


def as_numpy(x: Tensor) -> Any:
    """Features for scikit-learn; of a sparse tensor a sparse matrix."""
    x = x.detach().cpu()
    if x.layout != torch.sparse_csr:
        return x.float().numpy()
    parts = (part.numpy() for part in (x.values(), x.col_indices(), x.crow_indices()))
    return csr_matrix(tuple(parts), x.shape)


def public(x: Tensor, graph: Graph) -> dict[str, float]:
    """Accuracies on the graph's own split."""
    y, *split = (rows.cpu().numpy() for rows in (graph.y, graph.train, graph.val, graph.test))
    return dict(zip(("validation", "public"), accuracies(as_numpy(x), y, *split), strict=True))


def random_splits(x: Tensor, graph: Graph, number: int) -> dict[str, float]:
    """Mean test accuracy of splits that are drawn, 10 % to train, 10 % to choose C, 80 % to test: always the same."""
    if not number:
        return {}
    features, y = as_numpy(x), graph.y.cpu().numpy()
    ends = round(LABELLED * len(y)), round((LABELLED + VALIDATION) * len(y))
    found = []
    for seed in range(number):
        order = np.random.default_rng(seed).permutation(len(y))
        found.append(accuracies(features, y, *np.split(order, ends))[1])
    return {"random": mean(found)}


def draw_maps(shown: dict[str, Tensor], graph: Graph, path: Path) -> None:
    """t-SNE of features with the classes as colours, a panel for each title."""
    rows = np.random.default_rng(0).permutation(len(graph.y))[:SHOWN]
    y = graph.y.cpu().numpy()[rows]
    with plt.rc_context(STYLE), threadpool_limits(1):
        figure, panels = plt.subplots(1, len(shown), figsize=(8.4, 4.0), layout="constrained")
        for axes, (title, x) in zip(panels, shown.items(), strict=True):
            unit = normalize(as_numpy(x))[rows]
            dense = unit.toarray() if issparse(unit) else unit
            middle = PCA(min(MIDDLE, *dense.shape), random_state=0).fit_transform(dense)
            places = TSNE(perplexity=min(30, len(rows) / 4), init="pca", random_state=0).fit_transform(middle)
            axes.scatter(*places.T, c=y, cmap="tab10", s=min(40.0, 12000 / len(rows)), linewidths=0)
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        figure.savefig(path)
        plt.close(figure)
