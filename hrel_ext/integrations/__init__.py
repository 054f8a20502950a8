"""Hooks for other training loops, `lightning` and `transformers`, each of which imports its package when it is used."""
# SPDX-License-Identifier: MIT
