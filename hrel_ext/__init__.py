"""Relevance of convolution filters, by matrix-based Renyi entropy, all filters at once."""
# SPDX-License-Identifier: MIT

from hrel_ext._ops import build_info
from hrel_ext.relevance import RelevanceTerms, relevance, relevance_terms
from hrel_ext.selection import Selection, conditional_relevance, joint_relevance, select_filters
from hrel_ext.width import kernel_width

__all__ = [
    "RelevanceTerms",
    "Selection",
    "build_info",
    "conditional_relevance",
    "joint_relevance",
    "kernel_width",
    "relevance",
    "relevance_terms",
    "select_filters",
]
