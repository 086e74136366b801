#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pytorch-metric-learning 2.9.0: ClassWeightedReducer does not weight the terms of MultiSimilarityLoss (nor those of
# GeneralizedLiftedStructureLoss and CircleLoss) by their classes. It multiplies their mean by the mean of the weights.
#
# These losses return their terms as a column [n, 1], the weights of the samples are a vector [n], and the product of the
# two is [n, n]. Which class a large weight belongs to makes no difference. Losses whose terms are a vector are weighted.
#
# Seen with torch 2.13.0 (CPU):
#   weights 1, 2, 30: 11.580; weights 30, 2, 1: 11.580; each term times the weight of its class: 12.990 and 10.911
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 pytorch-metric-learning==2.9.0
cd "$folder"
cat >seen.py <<'PYTHON'
import sys

import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.reducers import ClassWeightedReducer, DoNothingReducer

torch.manual_seed(0)
z, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
terms = MultiSimilarityLoss(reducer=DoNothingReducer())(z, labels)["loss"]["losses"].flatten()
orders = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([30.0, 2.0, 1.0])
seen = [MultiSimilarityLoss(reducer=ClassWeightedReducer(weights))(z, labels).item() for weights in orders]
meant = [(terms * weights[labels]).mean().item() for weights in orders]
print(
    f"weights 1, 2, 30: {seen[0]:.3f}; weights 30, 2, 1: {seen[1]:.3f}; "
    f"each term times the weight of its class: {meant[0]:.3f} and {meant[1]:.3f}"
)
product_of_means = (terms.mean() * orders[0][labels].mean()).item()
same = all(abs(value - product_of_means) < 1e-4 * product_of_means for value in seen)
sys.exit(0 if same and all(abs(a - b) > 0.1 for a, b in zip(seen, meant)) else 1)
PYTHON
env/bin/python seen.py
