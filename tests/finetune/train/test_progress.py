"""What a score does to the best one, and to patience."""

import math

from stabviz.finetune.train.progress import Progress


def test_nan_never_takes_the_place_of_a_number_and_any_number_takes_that_of_nan():
    progress, best = Progress(), []
    for updates, score in enumerate((math.nan, -3.0, math.nan, -2.0, -2.0), start=1):
        progress.updates = updates
        progress.count_evaluation(score, steps=9, patience=None)
        best.append(progress.best_at)
    assert best == [1, 2, 2, 4, 4]
    assert (progress.best_score, progress.stale_evaluations) == (-2.0, 1)


def test_patience_counts_evaluations_without_a_better_score():
    progress = Progress()
    for updates, score in enumerate((-1.0, -1.0, -1.5), start=1):
        assert progress.finished == ""
        progress.updates = updates
        progress.count_evaluation(score, steps=9, patience=2)
    assert progress.finished == "no better score"
