"""Relevance of convolution filters, by matrix-based Renyi entropy, all filters at once."""
# SPDX-License-Identifier: MIT

from hrel_ext._ops import build_info
from hrel_ext.null import PermutationNull, permutation_null
from hrel_ext.relevance import RelevanceTerms, relevance, relevance_terms
from hrel_ext.width import kernel_width

__all__ = [
    "PermutationNull",
    "RelevanceTerms",
    "build_info",
    "kernel_width",
    "permutation_null",
    "relevance",
    "relevance_terms",
]
