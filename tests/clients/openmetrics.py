"""Reads an exposition from stdin as a scraper would: openmetrics.py FORMAT, which is openmetrics or text.

Prints, as JSON, the type of every family, its samples (name, labels, value), and the exemplars' labels. What the
parser does not take ends it.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

parse = {"openmetrics": openmetrics, "text": text}[sys.argv[1]]
families = {}
for family in parse(sys.stdin.read()):
    families[family.name] = {
        "type": family.type,
        "unit": family.unit,
        "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
        "exemplars": [sample.exemplar.labels for sample in family.samples if sample.exemplar],
    }
print(json.dumps(families))
