"""Matrix-based Renyi information from Gram matrices, and by it the relevance of convolution filters, all at once."""
# SPDX-License-Identifier: MIT

from hrel_ext._ops import build_info
from hrel_ext.collect import PAPER_WHERE, collect
from hrel_ext.entropy import (
    conditional_entropy,
    conditional_mutual_information,
    entropy,
    joint_entropy,
    mutual_information,
    total_correlation,
)
from hrel_ext.gram import CONVENTIONS, Convention, gram, mean_distance, median_distance
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
from hrel_ext.selection import Selection, conditional_relevance, joint_relevance, select_filters
from hrel_ext.width import MovingWidth, kernel_width

__all__ = [
    "CONVENTIONS",
    "PAPER_WHERE",
    "Agreement",
    "BalancedBatchSampler",
    "Convention",
    "Header",
    "IndistinguishableScoresWarning",
    "LayerScores",
    "MovingWidth",
    "PermutationNull",
    "RelevanceTerms",
    "Scores",
    "Selection",
    "build_info",
    "collect",
    "conditional_entropy",
    "conditional_mutual_information",
    "conditional_relevance",
    "entropy",
    "gram",
    "joint_entropy",
    "joint_relevance",
    "kendall_tau",
    "kernel_width",
    "mean_distance",
    "median_distance",
    "mutual_information",
    "permutation_null",
    "relevance",
    "relevance_terms",
    "select_filters",
    "total_correlation",
    "weight_hash",
]


def __getattr__(name: str) -> object:
    """`load_pruned` is fetched when it is asked for: it needs the extra ``prune``, and ``import hrel_ext`` does not."""
    if name != "load_pruned":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hrel_ext.pruning import load_pruned

    return load_pruned


def __dir__() -> list[str]:
    return [*globals(), "load_pruned"]
