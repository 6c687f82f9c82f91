"""The report as its reader has it: opened from the disk in a real browser, looked at, used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuledger.model import Outcome, TaskState
from tests.browser import PROGRAM, WHY_NOT, Browser, browser
from tests.helpers import wait_until
from tests.report_support import attempt, curves_of, failed_attempt, many, task, write_page

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT),
    pytest.mark.timeout(300),
]

CHARTS = ("progress", "hosts", "causes", "timeline", "metric", "parallel", "curves")
SOFTWARE_GL = "GL Driver Message"
"""A driver without a GPU says that it is slow."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def view(chromium: Browser) -> Iterator[Browser]:
    """The browser; at the end it must have been content, and have asked for nothing."""
    chromium.complaints.clear()
    chromium.requests.clear()
    yield chromium
    assert [text for text in chromium.complaints if SOFTWARE_GL not in text] == []
    assert chromium.requests == []


def text_of(view: Browser, selector: str) -> str:
    found: str = view.value(f"document.querySelector({json.dumps(selector)}).textContent")
    return found


def column(view: Browser, number: int) -> list[str]:
    """Return a column of the table of tasks, as shown; columns count from 1."""
    found: list[str] = view.value(
        f"[...document.querySelectorAll('#task-table tbody tr td:nth-child({number})')]"
        ".map((cell) => cell.textContent)"
    )
    return found


def show_chart(view: Browser, name: str) -> None:
    """Scroll to a chart and wait until it is drawn."""
    view.centre(f"#{name}-chart")
    view.wait_for(f"document.querySelector('#{name}-chart.drawn .main-svg')")


def hover(view: Browser, name: str, selector: str) -> str:
    """Point at something in a chart; return what the hover says."""
    shown = f"[...document.querySelectorAll('#{name}-chart .hovertext')].map((e) => e.textContent)"

    def said() -> list[str]:
        # Again and again: a chart above that is drawn just now moves everything below.
        view.point(*view.centre(f"#{name}-chart {selector}"))
        found: list[str] = view.value(f"new Promise((go) => setTimeout(() => go({shown}), 100))")
        return found

    return " ".join(wait_until(said, because=f"nothing is said in {name}", timeout_s=60))


def test_everything_is_drawn_and_can_be_used(view: Browser, tmp_path: Path) -> None:
    records = many(60, workers=4)
    view.open(write_page(tmp_path / "r.html", records, curves=curves_of(60)))
    for name in CHARTS:
        show_chart(view, name)

    said = hover(view, "timeline", ".bars .point:nth-child(3) path")
    assert "exp1_" in said
    assert "attempt 1, completed" in said

    assert column(view, 1)[0] == "exp1_0_0"
    view.click("#task-table th:nth-child(3) button")
    view.click("#task-table th:nth-child(3) button")
    tries = [int(text) for text in column(view, 3)]
    assert tries == sorted(tries, reverse=True)
    assert tries[0] > tries[-1]
    assert view.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == (
        "descending"
    )

    view.click("#filter")
    view.type("Model=resnet19 lr=0.1")
    wanted = [r for r in records if (r.params["model"], r.params["lr"]) == ("resnet19", 0.1)]
    assert sorted(column(view, 1)) == sorted(record.task for record in wanted)
    assert text_of(view, "#page-text") == f"1 to {len(wanted)} of {len(wanted)} tasks"
    view.click("#task-table td .open")
    assert "attempt 1 " in text_of(view, "tr.detail")
    assert " on host" in text_of(view, "tr.detail")


def test_choices_change_the_charts(view: Browser, tmp_path: Path) -> None:
    view.open(write_page(tmp_path / "r.html", many(60), curves=curves_of(60)))
    show_chart(view, "metric")
    show_chart(view, "curves")
    assert text_of(view, "#metric-chart .ytitle") == "val_accuracy"
    for choice, value in (("metric", "loss"), ("group", "1")):
        view.value(
            f"(() => {{ const e = document.getElementById('{choice}-choice');"
            f" e.value = '{value}'; e.dispatchEvent(new Event('change')); }})()"
        )
    assert text_of(view, "#metric-chart .ytitle") == "loss"
    legend = view.value(
        "[...document.querySelectorAll('#curves-chart .legendtext')].map((e) => e.textContent)"
    )
    assert legend == ["model resnet18", "model resnet19", "model resnet20"]


def test_a_mean_is_over_all_tasks_also_where_one_did_not_report(
    view: Browser, tmp_path: Path
) -> None:
    curves = curves_of(2, steps=5)
    metric = curves["metrics"][0]
    metric["curves"] = [[0, [None, 4, None, None, 1]], [1, [10, 10, 10, 10, None]]]
    curves["metrics"] = [metric]
    view.open(write_page(tmp_path / "r.html", many(2), curves=curves))
    show_chart(view, "curves")
    view.value(
        "(() => { const e = document.getElementById('group-choice');"
        " e.value = 'all'; e.dispatchEvent(new Event('change')); })()"
    )
    means = view.value("document.getElementById('curves-chart').data.at(-1).y")
    assert means == [10, 7, 6.5, 6, 1]


@pytest.mark.parametrize("values", [7, 20])
@pytest.mark.parametrize("parameters", [1, 6])
def test_long_names_of_values_stay_clear_of_the_axis_title(
    view: Browser, tmp_path: Path, values: int, parameters: int
) -> None:
    records = [
        task(
            i,
            0,
            attempt(),
            params={f"p{n}": f"{i % values}_a_long_name" for n in range(parameters)},
            result={"loss": i / 7},
        )
        for i in range(40)
    ]
    view.open(write_page(tmp_path / "r.html", records, curves=curves_of(40)), width=1400)
    show_chart(view, "metric")
    chart = "document.getElementById('metric-chart')"
    found = f"[...{chart}.querySelectorAll('SELECTOR')].map((e) => e.getBoundingClientRect())"
    titles, ticks = (
        json.loads(view.value(f"JSON.stringify({found.replace('SELECTOR', selector)})"))
        for selector in ("[class$=title]", ".xaxislayer-above text")
    )
    assert len(titles) > parameters
    assert len(ticks) == parameters * values
    for title in titles:
        for tick in ticks:
            apart = (
                title["right"] <= tick["left"] + 1
                or tick["right"] <= title["left"] + 1
                or title["bottom"] <= tick["top"] + 1
                or tick["bottom"] <= title["top"] + 1
            )
            assert apart, (title, tick)


MARKUP = "<img src=x onerror=hacked()><b>bold</b>&lt;i&gt;"
SCRIPT = "</script><script>hacked()</script>"


def test_hostile_names_stay_text(view: Browser, tmp_path: Path) -> None:
    bad = failed_attempt(1, error=SCRIPT, traceback=f"{MARKUP}\n{SCRIPT}", worker=f"{MARKUP}:gpu0")
    good = attempt(worker=f"{SCRIPT}:gpu0")
    records = [
        task(
            i,
            0,
            bad if i % 2 else good,
            sweep=MARKUP,
            params={MARKUP: f"<b>{i % 4}</b>", "__proto__": SCRIPT + str(i), "constructor": i},
            result=None if i % 2 else {MARKUP: i / 7, "toString": i},
        )
        for i in range(12)
    ]
    curves = {**curves_of(12)}
    curves["metrics"][0]["name"] = MARKUP
    view.open(write_page(tmp_path / "r.html", records, curves=curves, title=SCRIPT + MARKUP))
    for name in CHARTS:
        show_chart(view, name)
    view.click("details summary")

    assert text_of(view, "h1") == SCRIPT + MARKUP
    assert view.value("document.title") == SCRIPT + MARKUP
    assert text_of(view, "pre") == f"{MARKUP}\n{SCRIPT}"
    assert text_of(view, "#metric-choice option") == MARKUP
    assert text_of(view, "#metric-chart .xtitle").startswith("<img src=x")
    assert "<img src=x" in text_of(view, "#parallel-chart")
    assert "&lt;img" not in text_of(view, "#parallel-chart")
    assert "<b>2</b>" in text_of(view, "#parallel-chart")
    assert "<img src=x" in text_of(view, "#timeline-chart .ytick text")
    assert hover(view, "timeline", ".bars .point path").startswith("<img src=x onerror=hacked()>")
    assert view.value("document.querySelectorAll('img, main script, main b, svg b').length") == 0
    bold = "[...document.querySelectorAll('svg tspan')].filter((e) => e.style.fontWeight).length"
    assert view.value(bold) == 0
    assert column(view, 1)[0] == f"{MARKUP}_0_0"


def test_what_is_no_part_of_the_page_cannot_run_or_reach_the_network(
    chromium: Browser, tmp_path: Path
) -> None:
    chromium.open(write_page(tmp_path / "r.html", [task()]))
    chromium.complaints.clear()
    chromium.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        " document.body.append(s); document.body.setAttribute('onclick', 'window.hacked = 1');"
        " document.body.click(); })()"
    )
    assert chromium.value("window.hacked === undefined")
    assert chromium.value("fetch('http://127.0.0.1:9/').then(() => 'sent', (e) => e.name)") == (
        "TypeError"
    )
    assert any("Content Security Policy" in text for text in chromium.complaints)
    assert any("connect-src" in text or "default-src" in text for text in chromium.complaints)


def test_links_lead_to_the_logs(view: Browser, tmp_path: Path) -> None:
    log = tmp_path / "runs" / "exp1_0_0" / "attempt-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("trained\n")
    view.open(write_page(tmp_path / "r.html", [task(0, 0, attempt())], logs="./runs"))
    assert view.value("document.querySelector('#task-table a').href") == log.as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits_every_width_and_both_colour_schemes(
    view: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    page = write_page(tmp_path / "r.html", many(40), curves=curves_of(40))
    view.open(page, width=width)
    view.look(width=width, dark=dark)
    for name in CHARTS:
        show_chart(view, name)
    assert view.value("document.documentElement.scrollWidth") <= width
    page_colour = view.value("getComputedStyle(document.body).backgroundColor")
    assert page_colour == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")
    # The charts' colours are those of the scheme, the same as in the rest of the page.
    wanted = view.value(
        "(() => { const e = document.createElement('i'); e.style.color = 'var(--completed)';"
        " document.body.append(e); const c = getComputedStyle(e).color; e.remove(); return c; })()"
    )
    first_bar = "getComputedStyle(document.querySelector('#hosts-chart .bars path')).fill"
    view.wait_for(f"{first_bar} === {json.dumps(wanted)}")


def test_it_can_be_printed_from_the_dark(view: Browser, tmp_path: Path) -> None:
    view.open(write_page(tmp_path / "r.html", many(40), curves=curves_of(40)))
    view.look(dark=True)
    show_chart(view, "progress")
    written = "getComputedStyle(document.querySelector('#progress-chart .legendtext')).fill"
    view.wait_for(f"{written} === 'rgb(228, 232, 236)'")

    view.look(dark=True, media="print")
    view.wait_for(f"{written} === 'rgb(28, 33, 38)'")
    drawn = "[...document.querySelectorAll('.chart')].every((one) => one.matches('.drawn'))"
    assert view.value(drawn)
    assert view.pdf().startswith(b"%PDF")

    view.look(dark=True)
    view.wait_for(f"{written} === 'rgb(228, 232, 236)'")


@pytest.mark.parametrize(
    "records",
    [
        [],
        [task()],
        [task(0, 0, attempt(outcome=None, ended_at=None, duration_s=None))],
        [task(0, 0, attempt(), params={}, result={"loss": 1.0})],
        [task(0, 0, attempt(outcome=Outcome.LOST), state=TaskState.PENDING)],
        [task(0, 0, attempt(), result={"a": "x"}), task(0, 0, attempt(), sweep="b", params={})],
    ],
    ids=["nothing", "pending", "running", "no parameters", "lost", "two sweeps"],
)
def test_a_ledger_with_little_in_it_has_a_whole_page(
    view: Browser, tmp_path: Path, records: list[object]
) -> None:
    view.open(write_page(tmp_path / "r.html", records))  # type: ignore[arg-type]
    for name in CHARTS:
        view.centre(f"#{name}-chart")
        view.wait_for(f"document.querySelector('#{name}-chart.drawn')")
        assert text_of(view, f"#{name}-chart")


def test_ten_thousand_tasks_open_and_can_be_searched(view: Browser, tmp_path: Path) -> None:
    records = many(10_000)
    view.open(write_page(tmp_path / "r.html", records, curves=curves_of(400)))
    assert text_of(view, "#page-text") == "1 to 50 of 10,000 tasks"
    for name in CHARTS:
        show_chart(view, name)
    assert "exp1_" in hover(view, "timeline", ".scatterlayer .trace")
    view.click("#filter")
    view.type("exp1_3333_")
    assert column(view, 1) == ["exp1_3333_0"]
