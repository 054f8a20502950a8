"""Relevance as a metric of torch-kirigami's pruner."""
# SPDX-License-Identifier: MIT

import math
from collections import Counter
from collections.abc import Mapping

try:
    from torch_kirigami import Impact
    from torch_kirigami.pruning import Candidate, MetricContext, PlanningError
except ImportError as error:
    text = "hrel_ext.integrations.kirigami needs torch_kirigami: pip install 'hrel_ext[kirigami]'"
    raise ImportError(text) from error

from hrel_ext.scores import OverBatches


class Relevance:
    """The mean score of the filters that a removal takes, of all layers that lose filters together.

    Args:
        scores: layer to its scores, as `hrel_ext.collect` makes them of the model that is pruned.

    Example:
        >>> metric = Relevance(hrel_ext.collect(model, batches))  # doctest: +SKIP
        >>> model, result = pruner.prune(candidates, budget=budget, strategy=Greedy(metric))  # doctest: +SKIP
    """

    def __init__(self, scores: Mapping[str, OverBatches]) -> None:
        self._scores = {f"{name}.weight": layer.mean.tolist() for name, layer in scores.items()}

    def score(
        self, context: MetricContext, candidates: tuple[Candidate, ...], *, accepted_impact: Impact
    ) -> list[float]:
        """The score of each candidate in bits, low goes first; PlanningError for one that takes no scored filter."""
        gone, found = self._filters(accepted_impact), []
        for candidate in candidates:
            impact = context.impact((*accepted_impact.requested, *candidate.remove))
            context.require_complete(impact)
            values = [self._scores[weight][f] for weight, f in self._filters(impact) - gone]
            if not values:
                raise PlanningError(f"candidate {candidate.key!r} must take a filter of a scored layer")
            found.append(math.fsum(values) / len(values))
        return found

    def _filters(self, impact: Impact) -> set[tuple[str, int]]:
        """The filters of scored layers that go as a whole: weight and index."""
        filters = set()
        for selection in impact.parameters:
            elements = Counter[int]()  # of each filter
            for region in selection.regions:
                elements.update(dict.fromkeys(region.axes[0], math.prod(map(len, region.axes[1:]))))
            whole = [f for f, count in elements.items() if count == math.prod(selection.tensor.shape[1:])]
            filters |= {(path, f) for path in selection.tensor.paths if path in self._scores for f in whole}
        return filters
