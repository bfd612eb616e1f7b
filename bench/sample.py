# SPDX-License-Identifier: BSD-3-Clause
"""What one short run of a measurement found, and what many of them say together.

A sample has the form in which `outboard bench --json` gives its measurements: name, unit, median, p99, ratio,
quantiles, floor (name, median, p99).
"""
import statistics

PARTS = (0, .01, .05, .1, .25, .5, .75, .9, .95, .99, .999, 1)


class Skip(Exception):
    """Says why something cannot be measured here."""


def quantile(values, part):
    ordered = sorted(values)
    return ordered[round(part * (len(ordered) - 1))]


def sample(name, unit, values, floor_name, floor_values):
    """From single values. A floor of nothing (an idle process needs no CPU) has no ratio."""
    median, floor = statistics.median(values), statistics.median(floor_values)
    return {"name": name, "unit": unit, "median": median, "p99": quantile(values, .99),
            "ratio": median / floor if floor else None,
            "quantiles": [[part, quantile(values, part)] for part in PARTS],
            "floor": {"name": floor_name, "median": floor, "p99": quantile(floor_values, .99)}}



def spread(values):
    """The distance between the quartiles."""
    return quantile(values, .75) - quantile(values, .25) if values else 0


def together(samples):
    """The medians over the samples, each of which is a round, and the noise of the ratio."""
    first = samples[0]
    ratios = [found["ratio"] for found in samples if found["ratio"] is not None]
    columns = zip(*([value for _, value in found["quantiles"]] for found in samples))
    return {"name": first["name"], "unit": first["unit"],
            "median": statistics.median(found["median"] for found in samples),
            "p99": statistics.median(found["p99"] for found in samples),
            "ratio": statistics.median(ratios) if ratios else None, "noise": spread(ratios), "rounds": len(samples),
            "quantiles": [[part, statistics.median(column)] for part, column in zip(PARTS, columns)],
            "floor": {"name": first["floor"]["name"],
                      "median": statistics.median(found["floor"]["median"] for found in samples),
                      "p99": statistics.median(found["floor"]["p99"] for found in samples)}}
