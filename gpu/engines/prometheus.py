"""What an engine's /metrics page says, by name. Read with prometheus_client's own parser."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Bounds a hostile or broken page; a large vLLM has about 3,000 samples.
MAX_SAMPLES: Final = 50_000


class NotMetrics(ValueError):
    """The text is not in Prometheus' format."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


class Metrics:
    """Samples by their full name (``vllm:num_preemptions_total``)."""

    def __init__(self, samples: Mapping[str, list[Sample]]) -> None:
        self._samples = samples

    def __contains__(self, name: str) -> bool:
        return name in self._samples

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._samples)

    def samples(self, name: str) -> list[Sample]:
        return self._samples.get(name, [])

    def total(self, *names: str) -> float | None:
        """Summed over all label sets (with data parallelism there is one per rank); of the first name that exists."""
        values = self._values(names)
        return None if values is None else sum(values)

    def mean(self, *names: str) -> float | None:
        values = self._values(names)
        return None if values is None else sum(values) / len(values)

    def whole(self, *names: str) -> int | None:
        value = self.total(*names)
        return None if value is None else round(value)

    def labelled(self, name: str, label: str, value: str) -> float | None:
        """Summed over the label sets in which ``label`` is ``value``."""
        values = [
            one.value for one in self.samples(name) if one.labels.get(label) == value and math.isfinite(one.value)
        ]
        return sum(values) if values else None

    def label(self, name: str, label: str) -> str | None:
        """A label's value at the first sample that has it: engines put their set-up there."""
        return next((one.labels[label] for one in self.samples(name) if label in one.labels), None)

    def _values(self, names: tuple[str, ...]) -> list[float] | None:
        for name in names:
            values = [one.value for one in self.samples(name) if math.isfinite(one.value)]
            if values:
                return values
        return None


def parse(text: str) -> Metrics:
    """
    :raises NotMetrics: where the text cannot be read, or has too many samples
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: defaultdict[str, list[Sample]] = defaultdict(list)
    count = 0
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                count += 1
                if count > MAX_SAMPLES:
                    raise NotMetrics(f"more than {MAX_SAMPLES} samples")
                found[sample.name].append(Sample(dict(sample.labels), float(sample.value)))
    except NotMetrics:
        raise
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:  # the parser's ways to say no
        raise NotMetrics(f"not in Prometheus' text format: {error}") from error
    return Metrics(found)
