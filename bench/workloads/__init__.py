# SPDX-License-Identifier: Apache-2.0
"""What a case computes: pycl's function, forms that store the matrix, other people's code, the float64 answer."""

from __future__ import annotations
