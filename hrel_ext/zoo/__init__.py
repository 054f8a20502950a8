"""Networks and data sets of the paper's experiments, by name."""
# SPDX-License-Identifier: MIT
