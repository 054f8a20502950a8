"""Hooks for the training loops of `lightning` and `transformers`, and a metric for the pruner of `kirigami`.

Each module imports its package when it is used.
"""
# SPDX-License-Identifier: MIT
