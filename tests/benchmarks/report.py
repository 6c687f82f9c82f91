"""Turns `results.json` into the README's tables and a picture; pure, so that a test can compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

BEGIN = "<!-- benchmarks -->"
END = "<!-- /benchmarks -->"

Results = Mapping[str, Any]


def into_readme(text: str, results: Results) -> str:
    """Return the README with what is between the markers replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{markdown(results)}\n{END}{after}"


def markdown(results: Results) -> str:
    """Return all tables, each with what was measured and on what."""
    parts = [_header(results)]
    sections = (
        ("throughput", _throughput),
        ("overhead", _overhead),
        ("growth", _growth),
        ("idle", _idle),
        ("recovery", _recovery),
        ("capacity", _capacity),
    )
    parts += ["\n".join(draw(results[name])) for name, draw in sections if name in results]
    return "\n\n".join(parts)


def _header(results: Results) -> str:
    machine, reference = results["machine"], results["reference"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    kind = "a quick run of" if results["quick"] else ""
    return (
        f"Measured on {results['date']} by {kind} `python -m tests.benchmarks --write`: "
        f"{machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}, SQLite "
        f"{machine['sqlite']}; load {machine['load_before']} when it began; medians, and smallest "
        f"to largest in brackets. {versions}. At the same time a 4 KiB write with fsync took "
        f"{_ms(reference['fsync_4k_ms'])}, a commit of bare SQLite "
        f"{_ms(reference['commit_wal_ms'])} (WAL) and "
        f"{_ms(reference['commit_rollback_ms'])} (rollback journal)."
    ).replace("by  `", "by `")


def _throughput(found: Results) -> Iterator[str]:
    counts = sorted({int(n) for by_count in found["peers"].values() for n in by_count})
    main = [n for n in counts if n <= 16]
    more = [n for n in counts if n > 16]
    heads = [f"{n} worker{'s' if n > 1 else ''}" for n in main]
    waits = [f"longest wait, {n}" for n in (main[-1:] + more)]
    yield f"| claim + complete, tasks/s | {' | '.join([*heads, *waits])} | taken twice |"
    yield "| --- |" + " --- |" * (len(heads) + len(waits) + 1)
    for label, by_count in found["peers"].items():
        cells = [_rate(by_count.get(str(n), {}).get("per_s")) for n in main]
        cells += [_seconds(by_count.get(str(n), {}).get("longest_s")) for n in main[-1:] + more]
        twice = sum(one["twice"] for one in by_count.values())
        done = sum(one["done"] for one in by_count.values())
        cells.append(f"{twice:,} of {done:,}" if twice else "no")
        yield f"| {escape(label)} | {' | '.join(cells)} |"
    for label, reason in found["left_out"].items():
        yield f"| {escape(label)} | not measured: {escape(reason)}" + " |" * (
            len(heads) + len(waits) + 1
        )
    yield ""
    yield "![claims and completions a second](examples/benchmarks.svg)"


def _overhead(found: Results) -> Iterator[str]:
    yield (
        "| 2 workers, time ÷ `xargs -P2` | cold | warm | a bare loop of `subprocess.run` "
        "| idle between two, cold; warm |"
    )
    yield "| --- | --- | --- | --- | --- |"
    for label, one in found.items():
        if label != "left_out":
            ratios = one["over_xargs"]
            gaps = one.get("gap_ms", {})
            idle = "; ".join(_ms(gaps[kind]) for kind in ratios if kind in gaps)
            yield (
                f"| `{label}` | {_ratio(ratios.get('cold'))} | {_ratio(ratios.get('warm'))} "
                f"| {_ratio(ratios.get('bare'))} | {idle or '–'} |"
            )


def _growth(found: Results) -> Iterator[str]:
    yield "| tasks in the ledger | created in | claim | complete + claim | status |"
    yield "| --- | --- | --- | --- | --- |"
    for size, one in found.items():
        cells = [_ms(one[name]) for name in ("claim", "complete + claim", "status")]
        created = f"{one['created_s']:.2g} s, {one['peak_mib']:.0f} MiB"
        yield f"| {int(size):,} | {created} | {' | '.join(cells)} |"


def _idle(found: Results) -> Iterator[str]:
    memory = found["memory_mib"]
    yield "| waiting costs | |"
    yield "| --- | --- |"
    yield (
        f"| {found['workers']} idle workers, CPU of all (simulated; one real one × "
        f"{found['workers']}; guards) | {found['cpu_share_simulated']:.1%}; "
        f"{found['cpu_share_real']:.1%}; {found['cpu_share_guards']:.1%} of a core |"
    )
    yield f"| their locks, all | {found['locks_per_s']:.1f} a second |"
    yield (
        f"| memory of a worker; of its guard (RSS, PSS) | {memory['worker']['rss']:.0f}, "
        f"{memory['worker']['pss']:.0f} MiB; {memory['guard']['rss']:.0f}, "
        f"{memory['guard']['pss']:.0f} MiB |"
    )
    yield f"| CPU of one sign of life | {_ms(found['heartbeat_cpu_ms'])} |"


def _recovery(found: Results) -> Iterator[str]:
    yield "| SIGKILL of a worker to its task running again | |"
    yield "| --- | --- |"
    yield f"| same host | {_spread(found['same_host_s'], 's')} |"
    for key in ("short", "default"):
        one = found.get(key, found if key == "short" else None)
        if one is not None:
            name = f"other host, lease {one['lease_s']:g} s, heartbeat {one['heartbeat_s']:g} s"
            yield f"| {name} | lease + {_spread(one['other_host_after_lease_s'], 's')} |"


def _capacity(found: Results) -> Iterator[str]:
    places = list(found)
    names = {"local": "local disk", "nfs": "NFSv4.2, server and clients on one machine"}
    heads = [f"99 % busy up to ({names[name]})" for name in places]
    yield f"| one ledger, tasks of | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * len(places)
    for task in found["local"]["most_workers_at_99_percent"]:
        cells = [f"{found[n]['most_workers_at_99_percent'][task]:,} workers" for n in places]
        yield f"| {task} | {' | '.join(cells)} |"
    yield ""
    costs = ", ".join(f"{name} {1000 * found[name]['costs']['task_s']:.1f} ms" for name in places)
    checks = "; ".join(
        f"{one['workers']:,} workers, {one['task_s']:g} s: model {one['model']:.1%}, simulation "
        f"{one['simulation']:.1%}"
        for one in found["local"]["simulated"]
    )
    minute = found["local"]["most_workers_at_99_percent"]["60 s"]
    yield (
        f"From the measured cost of complete + claim ({costs}) and of looking who is alive. "
        f"Checked by simulation (share of the workers' time that goes into tasks): {checks}. "
        f"Beyond about {_round(minute):,} workers on one ledger, make several ledgers, or use a "
        "queue on a server such as PostgreSQL."
    )


def svg(found: Results) -> str:
    """Return a picture of the throughput: a row for each peer, a dot for each count, log scale."""
    rows = [(label, by_count) for label, by_count in found["peers"].items()]
    left, top, row, width = 300, 50, 26, 460
    height = top + row * len(rows) + 40
    shades = {"1": "#7aa6d8", "4": "#2f6db5", "16": "#12365f"}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" height="{height}" '
        f'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="12" y="20" font-weight="bold">claims + completions a second</text>',
    ]
    for place, (count, shade) in enumerate(shades.items()):
        x = left + 90 * place
        lines.append(f'<circle cx="{x}" cy="16" r="5" fill="{shade}"/>')
        word = "worker" if count == "1" else "workers"
        lines.append(f'<text x="{x + 10}" y="20">{count} {word}</text>')
    for power in range(5):
        line = left + width * power / 4
        lines.append(
            f'<line x1="{line:.0f}" y1="{top - 10}" x2="{line:.0f}" y2="{height - 30}" '
            'stroke="#ddd"/>'
        )
        lines.append(
            f'<text x="{line:.0f}" y="{height - 12}" text-anchor="middle">{10**power:,}</text>'
        )
    for number, (label, by_count) in enumerate(rows):
        y = top + row * number + 8
        weight = ' font-weight="bold"' if number == 0 else ""
        lines.append(f'<text x="12" y="{y + 4}"{weight}>{escape(label)}</text>')
        for count, shade in shades.items():
            rate = by_count.get(count, {}).get("per_s", {}).get("median", 0.0)
            if rate > 0:
                dot = left + width * max(0.0, min(math.log10(rate), 4.0)) / 4
                lines.append(f'<circle cx="{dot:.1f}" cy="{y}" r="6" fill="{shade}"/>')
    return "\n".join([*lines, "</svg>", ""])


def _rate(one: Results | None) -> str:
    return "–" if not one else f"{one['median']:,.0f} ({one['low']:,.0f}–{one['high']:,.0f})"


def _seconds(one: Results | None) -> str:
    return "–" if not one else f"{one['median']:.2f} s"


def _ratio(one: Results | None) -> str:
    return "–" if not one else f"{one['median']:.2f} ({one['low']:.2f}–{one['high']:.2f})"


def _ms(one: Results) -> str:
    return _spread(one, "ms")


def _spread(one: Results, unit: str) -> str:
    values: Sequence[float] = (one["median"], one["low"], one["high"])
    middle, low, high = (f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}" for value in values)
    return f"{middle} {unit} ({low}–{high})"


def _round(count: int) -> int:
    step: int = 10 ** (len(str(count)) - 1)
    return count // step * step
