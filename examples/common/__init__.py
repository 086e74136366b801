# SPDX-License-Identifier: Apache-2.0
"""What the examples share: data, encoders, the training loop with its checkpoints and logs, measures and pictures."""
