"""The classifier: words and pairs of words, weighed by how telling they are for a category."""

from __future__ import annotations

from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from training import EXAMPLES


class Classifier:
    """A trained pipeline behind one method."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def label(self, text: str) -> str:
        """The most probable category of a text."""
        found: Any = self._pipeline.predict([text])
        return str(found[0])


def train() -> Classifier:
    """Trains on the examples; takes well under a second."""
    texts = [text for category in EXAMPLES for text in EXAMPLES[category]]
    labels = [category for category in EXAMPLES for _ in EXAMPLES[category]]
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, stop_words="english"),
        LogisticRegression(C=20.0, max_iter=500),
    )
    pipeline.fit(texts, labels)
    return Classifier(pipeline)
