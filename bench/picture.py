# SPDX-License-Identifier: BSD-3-Clause
"""Results as a picture: latency distributions, and cost against scale. Plain SVG, no library."""
import html
import math

from report import quantity
from table import general

WIDTH, LEFT, TOP, ROW = 960, 300, 50, 22
COLOURS = {"outboard": "#1f6fb2", "floor": "#999999"}
PEERS = ("#c2571a", "#3a8f4d", "#7b4fa3", "#b03060")


def text(x, y, words, anchor="start", size=12, fill="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">'
            f"{html.escape(words)}</text>")


class Axis:
    """A logarithmic scale from values to places."""

    def __init__(self, values, begin, end):
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)
        self.begin, self.end = begin, end

    def at(self, value):
        part = (math.log10(max(value, 10 ** self.low)) - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)

    def decades(self):
        return [10 ** power for power in range(self.low, self.high + 1)]


def colour(subject, subjects):
    peers = [name for name in subjects if name not in COLOURS]
    return COLOURS.get(subject) or PEERS[peers.index(subject) % len(PEERS)]


def box(axis, y, result, fill):
    """Whiskers from 1 to 99 %, a box between the quartiles, a stroke at the median."""
    at = {part: axis.at(value) for part, value in result["quantiles"]}
    return (f'<path d="M{at[.01]:.1f} {y}H{at[.99]:.1f}" stroke="{fill}"/>'
            f'<rect x="{at[.25]:.1f}" y="{y - 6}" width="{max(at[.75] - at[.25], 1):.1f}" height="12" fill="{fill}"/>'
            f'<path d="M{at[.5]:.1f} {y - 8}v16" stroke="#000" stroke-width="2"/>')


def distributions(results, subjects, y):
    """The lines of one chart, and where it ends."""
    axis = Axis([value for result in results for _, value in result["quantiles"] if value > 0]
                + [result["floor"]["median"] for result in results], LEFT, WIDTH - 30)
    out, bottom = [text(20, y, "Latency: 1, 25, 50, 75, 99 % of all (grey: the floor's median)", size=15)], 0
    bottom = y + 20 + ROW * len(results)
    for decade in axis.decades():
        out.append(f'<path d="M{axis.at(decade):.1f} {y + 12}V{bottom}" stroke="#ddd"/>')
        out.append(text(axis.at(decade), bottom + 14, quantity(decade, "ns"), "middle", 11))
    for row, result in enumerate(results):
        middle = y + 28 + ROW * row
        floor = axis.at(result["floor"]["median"])
        out.append(text(LEFT - 10, middle + 4, f"{result['name']} ({result['subject']})", "end", 11))
        out.append(f'<path d="M{floor:.1f} {middle - 9}v18" stroke="{COLOURS["floor"]}" stroke-width="4"/>')
        out.append(box(axis, middle, result, colour(result["subject"], subjects)))
    return out, bottom + 40


def scale_chart(name, results, subjects, y):
    """Median and floor over N; results all have the same general name."""
    points = [(int(result["name"].rpartition("/")[2]), result) for result in results]
    across = Axis([n for n, _ in points], LEFT, WIDTH - 30)
    values = [value for _, result in points for value in (result["median"], result["floor"]["median"]) if value > 0]
    up = Axis(values, y + 200, y + 15)
    out = [text(20, y, f"{name}: cost of each against N", size=15)]
    for decade in up.decades():
        out.append(f'<path d="M{LEFT} {up.at(decade):.1f}H{WIDTH - 30}" stroke="#ddd"/>')
        out.append(text(LEFT - 10, up.at(decade) + 4, quantity(decade, results[0]["unit"]), "end", 11))
    for n in sorted({n for n, _ in points}):
        out.append(text(across.at(n), y + 216, str(n), "middle", 11))
    for subject in dict.fromkeys(result["subject"] for result in results):
        mine = sorted(((n, result) for n, result in points if result["subject"] == subject), key=lambda point: point[0])
        for fill, value in ((COLOURS["floor"], lambda r: r["floor"]["median"]),
                            (colour(subject, subjects), lambda r: r["median"])):
            path = " ".join(f"{across.at(n):.1f},{up.at(value(result)):.1f}" for n, result in mine)
            out.append(f'<polyline points="{path}" fill="none" stroke="{fill}" stroke-width="2"/>')
    return out, y + 250


def svg(report):
    results = report["results"]
    subjects = list(dict.fromkeys(result["subject"] for result in results))
    latencies = [r for r in results if r["unit"] == "ns" and general(r["name"]) == r["name"] and r["median"] > 0]
    out, y = [], TOP
    for place, subject in enumerate(subjects):
        out.append(text(20 + 140 * place, 22, subject, fill=colour(subject, subjects), size=14))
    if latencies:
        lines, y = distributions(latencies, subjects, y)
        out += lines
    for name in dict.fromkeys(general(r["name"]) for r in results if general(r["name"]) != r["name"]):
        lines, y = scale_chart(name, [r for r in results if general(r["name"]) == name], subjects, y + 20)
        out += lines
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10}" font-family="sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(out) + "\n</svg>\n")
