# SPDX-License-Identifier: BSD-3-Clause
"""Results as text for people, and a comparison of two."""
from table import BY_NAME, general, verdicts

UNITS = (("ns", 1), ("us", 1e3), ("ms", 1e6), ("s", 1e9))


def quantity(value, unit):
    if unit == "ns":
        unit, by = next(((u, b) for u, b in UNITS if abs(value) < 1e4 * b), UNITS[-1])
        return f"{value / by:.4g} {unit}"
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"


def ratio_text(result):
    return "-" if result["ratio"] is None else f"{result['ratio']:.2f} x"


def line(result, results):
    """results: all of the run so far, its own among them."""
    target = "; ".join(f"{text}: {'met' if met else 'not met'}" for text, met in verdicts(result, results))
    floor = quantity(result["floor"]["median"], result["unit"])
    return (f"{result['name']:28} {result['subject']:13} {quantity(result['median'], result['unit']):>14} "
            f"{quantity(result['p99'], result['unit']):>14} {floor:>14} {ratio_text(result):>9} "
            f"{result['noise']:>6.2f}  {target}").rstrip()


def head():
    return f"{'':28} {'':13} {'median':>14} {'p99':>14} {'floor':>14} {'ratio':>9} {'noise':>6}"


def worse(before, after):
    """By how much the ratio got worse beyond the noise of both; 0 or less: it did not."""
    higher = BY_NAME[general(after["name"])].higher
    change = after["ratio"] - before["ratio"]
    return (-change if higher else change) - before["noise"] - after["noise"]


def compare(old, new):
    """The lines that say which ratios got worse than the noise of both runs explains; None: there is nothing to
    compare. Ours alone: a peer that got slower is no regression."""
    known = {result["name"]: result for result in old["results"] if result["subject"] == "outboard"}
    mine = [result for result in new["results"] if result["subject"] == "outboard" and result["name"] in known]
    flagged = []
    for result in mine:
        before = known[result["name"]]
        if general(result["name"]) not in BY_NAME or None in (before["ratio"], result["ratio"]):
            continue
        if worse(before, result) > 0:
            flagged.append(f"worse: {result['name']}: {before['ratio']:.2f} -> {result['ratio']:.2f} x its floor "
                           f"(noise {before['noise']:.2f} and {result['noise']:.2f})")
    return flagged if mine else None
