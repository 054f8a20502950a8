"""Matrix-based Renyi information from Gram matrices, and by it the relevance of convolution filters, all at once."""
# SPDX-License-Identifier: MIT

from hrel_ext._ops import build_info
from hrel_ext.entropy import (
    conditional_entropy,
    conditional_mutual_information,
    entropy,
    joint_entropy,
    mutual_information,
    total_correlation,
)
from hrel_ext.gram import CONVENTIONS, Convention, gram, mean_distance, median_distance
from hrel_ext.relevance import RelevanceTerms, relevance, relevance_terms
from hrel_ext.width import MovingWidth, kernel_width

__all__ = [
    "CONVENTIONS",
    "Convention",
    "MovingWidth",
    "RelevanceTerms",
    "build_info",
    "conditional_entropy",
    "conditional_mutual_information",
    "entropy",
    "gram",
    "joint_entropy",
    "kernel_width",
    "mean_distance",
    "median_distance",
    "mutual_information",
    "relevance",
    "relevance_terms",
    "total_correlation",
]
