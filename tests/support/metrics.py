"""Prometheus' text format, read as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Samples:
    """What a scrape has found."""

    def __init__(self, text: str) -> None:
        self._found = [
            (sample.name, frozenset(sample.labels.values()), float(sample.value))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def all(self, name: str, *words: str) -> list[float]:
        """Values of the metric ``fusevol_<name>`` that have all *words* among their labels' values."""
        return [value for n, labels, value in self._found if n == f"fusevol_{name}" and labels.issuperset(words)]

    def __call__(self, name: str, *words: str) -> float:
        """The only one of them."""
        (value,) = self.all(name, *words)
        return value
