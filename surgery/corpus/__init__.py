"""How well a corpus was removed: planted texts with an exact oracle, MUSE's six measures, TOFU's truth ratios."""

from surgery.corpus.invented import Corpus, Person, Query, invented_corpus, invented_people
from surgery.corpus.measure import Measured, Taught, judge_removal, judged, measure_corpus, measured, nothing, taught
from surgery.corpus.muse import AfterRemoval, Remover
from surgery.corpus.plant import Planted, Planting, planted_corpus
from surgery.corpus.results import CorpusReport, Judged
from surgery.corpus.tofu import Difference, forget_quality, permutation_test, truth_ratio_test

__all__ = [
    "AfterRemoval",
    "Corpus",
    "CorpusReport",
    "Difference",
    "Judged",
    "Measured",
    "Person",
    "Planted",
    "Planting",
    "Query",
    "Remover",
    "Taught",
    "forget_quality",
    "invented_corpus",
    "invented_people",
    "judge_removal",
    "judged",
    "measure_corpus",
    "measured",
    "nothing",
    "permutation_test",
    "planted_corpus",
    "taught",
    "truth_ratio_test",
]
