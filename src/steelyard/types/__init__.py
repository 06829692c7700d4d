"""The one batch unit (:class:`Group`) and the family views that algorithms see.

Every view can be built from plain numbers: ``from_logps`` (``[b]`` sums with lengths, or ``[b, t]`` values with
masks), ``from_scores`` or ``from_logits``; so an algorithm can be tried, and checked, without a model.
"""

from steelyard.types.base import Sequences, View
from steelyard.types.group import Group
from steelyard.types.scores import Distill, Scores, TokenScores
from steelyard.types.views import Pairs, Ranked, Rollouts, Tokens, Unpaired

FAMILIES: dict[str, type[View]] = {
    view.__name__: view for view in (Tokens, Pairs, Unpaired, Ranked, Rollouts, Scores, TokenScores, Distill)
}
"""Every family view by class name; the annotation of an algorithm's first argument is one of them."""

__all__ = [
    "FAMILIES",
    "Distill",
    "Group",
    "Pairs",
    "Ranked",
    "Rollouts",
    "Scores",
    "Sequences",
    "TokenScores",
    "Tokens",
    "Unpaired",
    "View",
]
