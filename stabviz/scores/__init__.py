"""What a model is worth: scores of classes, numbers and entities, and what several seeds say together.

A ratio whose denominator is zero is 0.0: the precision of a class that was never predicted, the recall of one
that never occurs, the F1 of both. Imports nothing of ours.
"""

from stabviz.scores.calibration import expected_calibration_error
from stabviz.scores.classes import classification_scores, majority_share
from stabviz.scores.entities import entity_scores
from stabviz.scores.multi_label import multi_label_scores
from stabviz.scores.over_seeds import LOWER_IS_BETTER, churn, failed, headline, spread
from stabviz.scores.regression import regression_scores

__all__ = [
    "LOWER_IS_BETTER",
    "churn",
    "classification_scores",
    "entity_scores",
    "expected_calibration_error",
    "failed",
    "headline",
    "majority_share",
    "multi_label_scores",
    "regression_scores",
    "spread",
]
