// The headline, the progress, the attempts by host and cause, and the workers over time.
const ATTEMPTS_DRAWN = 20000;
const BARS_DRAWN = 2000;
const CAUSES_DRAWN = 12;
const RISKY = ["failed", "oom", "timed_out", "lost"];

function showHeadline() {
  const spent = Object.values(data.time).reduce((sum, seconds) => sum + seconds, 0);
  const lost = spent - data.time.completed - data.time.running;
  const span = data.span && data.span[1] - data.span[0];
  byId("title").textContent = data.title;
  byId("about").textContent = (data.span
    ? `${instant(data.span[0])} to ${instant(data.span[1])} (${duration(span)}). ` : "")
    + `As of ${instant(data.taken)}, ledger ${data.ledger}.`;
  showCounts();
  byId("effort").textContent = attempts.task.length
    ? `${several(attempts.task.length, "attempt")} on ${several(data.workers.length, "worker")} took `
      + `${duration(spent)} of worker time`
      + (lost > 0 ? `, ${Math.max(1, Math.round(100 * lost / spent))} % of it in attempts that did not complete.` : ".")
    : "Nothing has been started yet.";
  byId("fixed").textContent = data.fixed.length
    ? "The same in all tasks: " + data.fixed.map(([name, value]) => `${name} = ${value}`).join(", ") + "." : "";
  const paused = data.sweeps.filter((sweep) => sweep.paused !== null);
  notice("paused", paused.map((sweep) => `${sweep.name} is paused: ${sweep.paused}`).join("; "));
  notice("limits", data.total > tasks.name.length
    ? `Only the first ${count(tasks.name.length)} of ${several(data.total, "task")} are in the table and the charts of `
      + "results; counts, progress and failures are of all. A report of one sweep (--sweep NAME) is smaller." : "");
}

function showCounts() {
  const total = data.states.reduce((sum, state) => sum + data.counts[state], 0);
  const items = [element("li", {}, element("b", { text: count(total) }), total === 1 ? " task" : " tasks")];
  for (const state of ["completed", "failed", "running", "pending", "cancelled"]) {
    const n = data.counts[state];
    if (!n) continue;
    const part = element("span", { title: `${count(n)} ${state}` });
    part.style.background = `var(--${state})`;
    part.style.flexGrow = n;
    byId("states").append(part);
    items.push(element("li", {}, dot(state), element("b", { text: count(n) }), " " + state));
  }
  byId("counts").append(...items);
  byId("states").setAttribute("aria-label", byId("counts").textContent);
}

function notice(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = text === "";
}

function showSweeps() {
  if (data.sweeps.length < 2) return;
  byId("sweeps").hidden = false;
  const head = ["sweep", ...data.states, ""].map((text, i) =>
    element("th", { text, class: i && text ? "number" : "", scope: "col" }));
  const rows = data.sweeps.map((sweep) => element("tr", {}, element("td", { text: sweep.name }),
    ...data.states.map((state) => element("td", { text: count(sweep.counts[state]), class: "number" })),
    element("td", { text: sweep.paused === null ? "" : "paused" })));
  byId("sweep-table").append(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function progressChart() {
  const end = data.counts.running || !data.span ? data.taken : data.span[1];
  const wanted = [["completed", "tasks completed", "solid", "completed"],
    ["failed", "tasks failed", "solid", "failed"], ["attempts", "failed attempts", "dot", "failed"]];
  const traces = wanted.filter(([key]) => data.progress[key].at.length).map(([key, name, dash, outcome]) => ({
    type: "scatter", mode: "lines", name,
    x: [0, ...data.progress[key].at, end].map(local),
    y: [0, ...data.progress[key].count, data.progress[key].count.at(-1)],
    line: { shape: "hv", width: 2, dash, color: colour(outcome) },
    hovertemplate: "%{x|%Y-%m-%d %H:%M:%S}<br>%{y} " + name + "<extra></extra>",
  }));
  if (!traces.length) return "Nothing has ended yet.";
  return { traces, layout: layout({
    height: 300, showlegend: true, margin: { l: 48, r: 12, t: 36, b: 36 },
    xaxis: axis({ type: "date" }), yaxis: axis({ rangemode: "tozero", tickformat: ",d" }),
  }) };
}

function hostsChart() {
  if (!attempts.task.length) return "Nothing has been started yet.";
  const tally = new Map();
  const hosts = data.workers.map(hostOf);
  attempts.worker.forEach((worker, i) => {
    const host = hosts[worker];
    if (!tally.has(host)) tally.set(host, new Array(data.outcomes.length).fill(0));
    tally.get(host)[attempts.outcome[i]] += 1;
  });
  const names = [...tally.keys()].sort().reverse();
  const traces = data.outcomes.map((outcome, i) => ({
    type: "bar", orientation: "h", name: word(outcome), y: names.map((_, at) => at),
    x: names.map((name) => tally.get(name)[i]), marker: { color: colour(outcome) },
    hovertext: names.map((name) => lines(name, `${count(tally.get(name)[i])} ${word(outcome)}`)),
    hoverinfo: "text",
  })).filter((trace) => trace.x.some((n) => n));
  return { traces, layout: layout({
    height: 90 + 26 * names.length, barmode: "stack", bargap: 0.35, showlegend: true,
    legend: { ...layout({}).legend, traceorder: "normal" },
    margin: { l: 48, r: 12, t: 46, b: 36 }, xaxis: axis({ tickformat: ",d", rangemode: "tozero" }),
    yaxis: axis({ tickvals: names.map((_, at) => at), ticktext: names.map((name) => label(name, 24)), showgrid: false, range: [-0.6, names.length - 0.4] }),
  }) };
}

function causesChart() {
  const causes = data.causes.slice(0, CAUSES_DRAWN).reverse();
  if (!causes.length) return "No attempt has failed.";
  return { traces: [{
    type: "bar", orientation: "h", y: causes.map((_, i) => i), x: causes.map((cause) => cause.attempts),
    marker: { color: causes.map((cause) => colour(cause.outcome)) },
    hovertext: causes.map((cause) => lines(causeTitle(cause),
      `${several(cause.attempts, "attempt")} of ${several(cause.tasks, "task")}, ${word(cause.outcome)}`,
      hostsText(cause))), hoverinfo: "text",
  }], layout: layout({
    height: 60 + 26 * Math.max(causes.length, 2), bargap: 0.35, margin: { l: 48, r: 12, t: 8, b: 36 },
    xaxis: axis({ tickformat: ",d", rangemode: "tozero" }),
    yaxis: axis({ tickvals: causes.map((_, i) => i), ticktext: causes.map((cause) => label(causeTitle(cause), 30)), showgrid: false }),
  }) };
}

const causeTitle = (cause) => cause.error === null ? "all other causes" : cause.error;
const hostsText = (cause) => "on " + cause.hosts.slice(0, 4).map(([host, n]) => `${host} (${count(n)})`).join(", ")
  + (cause.hosts.length > 4 ? " and others" : "");

function timelineChart(width) {
  const all = attempts.task.map((_, i) => i);
  if (!all.length) return "Nothing has been started yet.";
  const newest = all.length > ATTEMPTS_DRAWN
    ? all.sort((a, b) => attempts.start[b] - attempts.start[a]).slice(0, ATTEMPTS_DRAWN) : all;
  byId("timeline-note").textContent = newest.length < attempts.task.length
    ? `The latest ${count(newest.length)} of ${several(attempts.task.length, "attempt")}.` : "";
  const order = data.workers.map((_, i) => i).sort((a, b) => compare(data.workers[b], data.workers[a]));
  const row = new Map(order.map((worker, at) => [worker, at]));
  const each = order.length > 40 ? 14 : 24;
  const kind = newest.length > BARS_DRAWN ? strokes : bars;
  const traces = data.outcomes.map((outcome, at) => {
    const mine = newest.filter((i) => attempts.outcome[i] === at);
    const more = kind(mine, (i) => row.get(attempts.worker[i]), colour(outcome), each * 0.72);
    return { name: word(outcome), hoverinfo: "text", ...more };
  }).filter((trace) => trace.x.length);
  return { traces, layout: layout({
    height: 96 + each * order.length, barmode: "overlay", showlegend: true, bargap: 0,
    margin: { l: 48, r: 12, t: 46, b: 36 }, xaxis: axis({ type: "date" }),
    yaxis: axis({ tickvals: order.map((_, at) => at), ticktext: order.map((worker) => label(data.workers[worker], width < 600 ? 16 : 32)), range: [-0.6, order.length - 0.4], showgrid: false }),
  }) };
}

function bars(mine, rowOf, color) {
  return {
    type: "bar", orientation: "h", width: 0.72, y: mine.map(rowOf),
    base: mine.map((i) => local(attempts.start[i])), x: mine.map((i) => attempts.duration[i] * 1000),
    marker: { color, line: { width: 1, color: attempts.task.length > 300 ? color : colour("page") } },
    hovertext: mine.map(attemptText),
  };
}

// Thousands of bars are slow; a broken line as thick as a bar looks the same.
function strokes(mine, rowOf, color, width) {
  const ends = (i) => [0, 0.5, 1].map((part) => local(attempts.start[i] + part * attempts.duration[i]));
  return {
    type: "scatter", mode: "lines", line: { color, width, simplify: false },
    x: mine.flatMap((i) => [...ends(i), null]), y: mine.flatMap((i) => [rowOf(i), rowOf(i), rowOf(i), null]),
    hovertext: mine.flatMap((i) => { const text = attemptText(i); return [text, text, text, ""]; }),
  };
}

function attemptText(i) {
  const error = attempts.error[i] < 0 ? "" : data.errors[attempts.error[i]];
  return lines(tasks.name[attempts.task[i]], `attempt ${attempts.number[i]}, ${word(outcomeOf(i))}, ${duration(attempts.duration[i])}`,
    `${data.workers[attempts.worker[i]]}, from ${instant(attempts.start[i])}`, error);
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function showFailures() {
  if (!data.causes.length) byId("failure-list").textContent = "No attempt has failed.";
  byId("failure-list").append(...data.causes.map((cause) => {
    const examples = cause.examples.map(([name, attempt]) => element("li", {}, logLink(name, attempt, `${name} #${attempt}`)));
    const rest = cause.attempts - examples.length;
    return element("details", {},
      element("summary", {}, dot(cause.outcome), causeTitle(cause), " ", element("span", { class: "count",
        text: `${several(cause.attempts, "attempt")} of ${several(cause.tasks, "task")}` })),
      element("p", { class: "quiet", text: `${word(cause.outcome)} ${hostsText(cause)}, last ${instant(cause.latest ?? data.taken)}` }),
      cause.traceback === null ? "" : element("pre", { text: cause.traceback, tabIndex: 0 }),
      element("ul", {}, ...examples, rest > 0 ? element("li", { class: "quiet", text: `and ${count(rest)} more` }) : ""));
  }));
}
