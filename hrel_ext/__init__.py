"""Relevance of convolution filters, by matrix-based Renyi entropy, all filters at once."""
# SPDX-License-Identifier: MIT

from hrel_ext._ops import build_info
from hrel_ext.collect import PAPER_WHERE, collect
from hrel_ext.null import PermutationNull, permutation_null
from hrel_ext.relevance import RelevanceTerms, relevance, relevance_terms
from hrel_ext.sampling import BalancedBatchSampler
from hrel_ext.scores import (
    Agreement,
    Header,
    IndistinguishableScoresWarning,
    LayerScores,
    Scores,
    kendall_tau,
    weight_hash,
)
from hrel_ext.width import kernel_width

__all__ = [
    "PAPER_WHERE",
    "Agreement",
    "BalancedBatchSampler",
    "Header",
    "IndistinguishableScoresWarning",
    "LayerScores",
    "PermutationNull",
    "RelevanceTerms",
    "Scores",
    "build_info",
    "collect",
    "kendall_tau",
    "kernel_width",
    "permutation_null",
    "relevance",
    "relevance_terms",
    "weight_hash",
]
