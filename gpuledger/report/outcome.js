// What came out: a metric against each parameter, all parameters at once, the learning curves.
const PLOTS = 12;
const DIMENSIONS = 10;
const CATEGORIES = 40;
const GROUPS = 8;
const NAME_LENGTH = 12;

// Parameters that differ, and the sweep where there are several.
const dimensions = [...data.params];
if (data.sweeps.length > 1) dimensions.unshift(["sweep", tasks.sweep.map((i) => data.sweeps[i].name)]);

const isNumber = (value) => typeof value === "number";
const metrics = new Map(data.metrics.filter(([, column]) => column.some(isNumber)));

function fill(select, names, chosen) {
  select.append(...names.map(([value, text]) => element("option", { value, text: cut(text, 60), selected: value === chosen })));
}

// The positions of a column's values on an axis, and the axis.
function scale(column, rows) {
  const present = rows.map((i) => column[i]).filter((value) => value !== null);
  const distinct = [...new Set(present)].sort(compare);
  if (distinct.every(isNumber)) {
    const [low, high] = [distinct[0], distinct.at(-1)];
    const isLog = low > 0 && high / low >= 50;
    const place = (value) => value === null ? null : isLog ? Math.log10(value) : value;
    const few = distinct.length <= 7 && distinct.length > 0;
    const ticks = few ? distinct : isLog ? decades(low, high) : null;
    const gaps = distinct.slice(1).map((value, i) => place(value) - place(distinct[i]));
    return { distinct, place, jitter: few && gaps.length ? 0.3 * Math.min(...gaps) : 0, numeric: true, values: ticks && ticks.map(place), texts: ticks && ticks.map(number) };
  }
  const kept = distinct.slice(0, CATEGORIES);
  const at = new Map(kept.map((value, i) => [value, i]));
  return { distinct, place: (value) => at.has(value) ? at.get(value) : null, jitter: 0.3, numeric: false,
    values: kept.map((_, i) => i), texts: kept.map(String) };
}

function decades(low, high) {
  const found = [];
  for (let e = Math.ceil(Math.log10(low)); e <= Math.floor(Math.log10(high)); e += 1) found.push(10 ** e);
  return found.length ? found : [low, high];
}

// Off its place by up to half, so that equal points can be told apart.
const aside = (row) => ((row * 0.618034) % 1) - 0.5;

// How category names have to be turned to stand side by side in so many pixels, and the room below.
function turned(one, pixels) {
  if (one.numeric) return [0, 0];
  const each = 0.9 * pixels / one.values.length;
  const longest = 6.8 * Math.max(...one.texts.map((text) => cut(text, NAME_LENGTH).length));
  return longest < each ? [0, 0] : each > 29 ? [30, 36] : [90, 68];
}

function metricRows(name) {
  const column = metrics.get(name);
  return tasks.name.map((_, i) => i).filter((i) => isNumber(column[i]));
}

function differingIn(rows) {
  return dimensions.filter(([, values]) => new Set(rows.map((i) => values[i])).size > 1);
}

function metricChart(width) {
  const name = byId("metric-choice").value;
  if (!metrics.size) return "No completed task has reported a number.";
  const rows = metricRows(name);
  const differing = differingIn(rows);
  if (!differing.length) return "No parameter differs between these tasks.";
  const shown = differing.slice(0, PLOTS);
  byId("metric-note").textContent = "One dot a completed task; bars are means."
    + (differing.length > PLOTS ? ` The first ${PLOTS} of ${differing.length} parameters.` : "");
  const column = metrics.get(name);
  const across = Math.min(shown.length, Math.max(1, Math.floor(width / 280)));
  const down = Math.ceil(shown.length / across);
  const scales = shown.map(([, values]) => scale(values, rows));
  const below = Math.max(...scales.map((one) => turned(one, width / across)[1]));
  const inside = (250 + below) * down - below;
  const made = layout({ height: 60 + (250 + below) * down, margin: { l: 64, r: 8, t: 8, b: 52 + below } });
  const type = hasWebgl && rows.length * shown.length > 4000 ? "scattergl" : "scatter";
  const traces = [];
  shown.forEach(([parameter, values], at) => {
    const id = at ? String(at + 1) : "";
    const [i, j] = [at % across, Math.floor(at / across)];
    const one = scales[at];
    const here = rows.filter((row) => one.place(values[row]) !== null);
    traces.push({
      type, mode: "markers", xaxis: "x" + id, yaxis: "y" + id,
      x: here.map((row) => one.place(values[row]) + one.jitter * aside(row)),
      y: here.map((row) => column[row]),
      marker: { color: colour("accent"), size: rows.length > 1000 ? 4 : 7, opacity: rows.length > 300 ? 0.45 : 0.75 },
      hovertext: here.map((row) => lines(tasks.name[row], `${name} ${number(column[row])}`, `${parameter} ${number(values[row])}`)),
      hoverinfo: "text",
    });
    if (one.distinct.length <= 20) traces.push(means(here, values, column, one, id));
    made["xaxis" + id] = axis({
      domain: [i / across + 0.02, (i + 1) / across - 0.02], anchor: "y" + id,
      title: { text: label(parameter, 30), font: { color: colour("text") }, standoff: 6 },
      tickvals: one.values, ticktext: one.texts && one.texts.map((text) => label(text, NAME_LENGTH)), tickangle: turned(one, width / across)[0],
      ...(one.numeric ? {} : { range: [-0.6, one.values.length - 0.4] }), showgrid: false, showline: true, automargin: false,
    });
    made["yaxis" + id] = axis({
      domain: [1 - (j + 1) / down + (down > 1 ? (35 + below) / inside : 0), 1 - j / down - 0.04 / down], anchor: "x" + id,
      matches: at ? "y" : undefined, showticklabels: i === 0, automargin: i === 0,
      title: i === 0 ? { text: label(name, 30), font: { color: colour("text") } } : undefined,
    });
  });
  return { traces, layout: made };
}

function means(rows, values, column, one, id) {
  const sums = new Map();
  for (const row of rows) {
    const [sum, n] = sums.get(values[row]) || [0, 0];
    sums.set(values[row], [sum + column[row], n + 1]);
  }
  const found = [...sums];
  return {
    type: "scatter", mode: "markers", xaxis: "x" + id, yaxis: "y" + id,
    x: found.map(([value]) => one.place(value)), y: found.map(([, [sum, n]]) => sum / n),
    marker: { symbol: "line-ew-open", size: 22, color: colour("text"), line: { width: 2 } },
    hovertext: found.map(([value, [sum, n]]) => lines(number(value), `mean ${number(sum / n)} of ${several(n, "task")}`)),
    hoverinfo: "text",
  };
}

function parallelChart() {
  const name = byId("metric-choice").value;
  const rows = metrics.size ? metricRows(name) : [];
  byId("parallel-note").textContent = "";
  const differing = differingIn(rows);
  if (!differing.length) return "Nothing to draw without parameters that differ and a metric.";
  if (!hasWebgl) return "This browser has no WebGL, which this chart needs.";
  const shown = differing.slice(0, DIMENSIONS);
  byId("parallel-note").textContent = "One line a completed task. Drag along an axis to keep only a part, drag its name to move it."
    + (differing.length > DIMENSIONS ? ` The first ${DIMENSIONS} of ${differing.length} parameters.` : "");
  const column = metrics.get(name);
  const whole = rows.filter((row) => shown.every(([, values]) => values[row] !== null));
  if (!whole.length) return "No task has all of the parameters.";
  const made = shown.map(([parameter, values]) => {
    const one = scale(values, whole);
    return { label: label(parameter, 16), values: whole.map((row) => (one.place(values[row]) ?? -1) + 0.5 * one.jitter * aside(row)),
      tickvals: one.values || undefined, ticktext: one.texts ? one.texts.map((text) => cut(text, 14)) : undefined };
  });
  made.push({ label: label(name, 16), values: whole.map((row) => column[row]) });
  return { traces: [{
    type: "parcoords", dimensions: made, labelfont: { color: colour("text"), size: 12 },
    tickfont: { color: colour("text"), size: 11 }, rangefont: { color: "rgba(0,0,0,0)", size: 1 },
    line: { color: whole.map((row) => column[row]), colorscale: [[0, colour("g0")], [0.5, colour("cancelled")], [1, colour("g1")]], showscale: false },
    unselected: { line: { color: colour("line"), opacity: 0.4 } },
  }], layout: layout({ height: 380, margin: { l: 70, r: 50, t: 44, b: 20 } }) };
}

function curvesChart() {
  const metric = data.curves.metrics[Number(byId("curve-choice").value)];
  byId("curves-note").textContent = "";
  if (!metric) return "No task has reported a metric over time.";
  const groups = grouped(metric.curves, byId("group-choice").value);
  const traces = groups.slice(0, GROUPS).flatMap(([text, curves], i) => band(metric.steps, curves, text, colour("g" + i)));
  byId("curves-note").textContent = curvesNote(metric, groups.length);
  return { traces, layout: layout({
    height: 380, showlegend: true, margin: { l: 56, r: 12, t: 50, b: 46 },
    xaxis: axis({ title: { text: "step", font: { color: colour("text") } } }),
    yaxis: axis({ title: { text: label(metric.name, 40), font: { color: colour("text") } } }),
  }) };
}

function curvesNote(metric, groups) {
  const parts = ["Lines are means over the tasks of a group, bands one standard deviation."];
  if (data.curves.read < data.curves.of) {
    parts.push(`From ${count(data.curves.read)} of ${several(data.curves.of, "task")}, evenly spread.`);
  }
  if (metric.averaged !== null) parts.push(`Each point is the mean over ${number(metric.averaged)} steps.`);
  if (groups > GROUPS) parts.push(`The ${GROUPS} largest of ${groups} groups.`);
  return parts.join(" ");
}

// [text, curves] for each value of a parameter; many numbers become four ranges.
function grouped(curves, parameter) {
  if (parameter === "all") return [["all tasks", curves]];
  if (parameter === "task") return curves.map((curve) => [tasks.name[curve[0]] ?? "", [curve]]);
  const [name, values] = dimensions[Number(parameter)];
  const distinct = [...new Set(curves.map(([task]) => values[task] ?? null))].sort(compare);
  const ranges = distinct.length > GROUPS && distinct.every(isNumber);
  const text = (value) => value === null ? "none" : ranges ? rangeText(value, distinct) : `${name} ${number(value)}`;
  const found = new Map(distinct.map((value) => [text(value), []]));
  for (const curve of curves) found.get(text(values[curve[0]] ?? null)).push(curve);
  const all = [...found];
  return all.length > GROUPS ? all.sort((a, b) => b[1].length - a[1].length) : all;
}

function rangeText(value, distinct) {
  const size = Math.ceil(distinct.length / 4);
  const part = Math.floor(distinct.indexOf(value) / size);
  const inside = distinct.slice(part * size, (part + 1) * size);
  return `${number(inside[0])} to ${number(inside.at(-1))}`;
}

// Tasks report at different steps: between two of its own, a task's value lies on the line.
function filled(steps, values) {
  const whole = [...values];
  let before = -1;
  values.forEach((value, at) => {
    if (value === null) return;
    for (let between = before + 1; before >= 0 && between < at; between++) {
      const share = (steps[between] - steps[before]) / (steps[at] - steps[before]);
      whole[between] = values[before] + share * (value - values[before]);
    }
    before = at;
  });
  return whole;
}

function band(steps, curves, text, color) {
  const points = [];
  const whole = curves.map(([, values]) => filled(steps, values));
  steps.forEach((step, at) => {
    const some = whole.map((values) => values[at]).filter((value) => value !== null);
    if (!some.length) return;
    const mean = some.reduce((sum, value) => sum + value, 0) / some.length;
    const spread = some.length > 1
      ? Math.sqrt(some.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (some.length - 1)) : 0;
    points.push({ step, mean, spread, n: some.length });
  });
  const x = points.map((point) => point.step);
  const edge = { type: "scatter", mode: "lines", x, line: { width: 0, color }, hoverinfo: "skip", showlegend: false, legendgroup: text };
  const bands = curves.length < 2 ? [] : [
    { ...edge, y: points.map((point) => point.mean - point.spread) },
    { ...edge, y: points.map((point) => point.mean + point.spread), fill: "tonexty", fillcolor: color + "2e" },
  ];
  return [...bands, {
    type: "scatter", mode: points.length > 1 ? "lines" : "markers", x, y: points.map((point) => point.mean),
    name: label(text, 40), legendgroup: text, line: { width: 2, color }, marker: { color },
    hovertext: points.map((point) => lines(text, `step ${number(point.step)}`,
      `${number(point.mean)}${point.n > 1 ? ` ± ${number(point.spread)}` : ""}`, several(point.n, "task"))),
    hoverinfo: "text",
  }];
}

function prepareChoices() {
  const named = [...metrics.keys()];
  fill(byId("metric-choice"), named.map((name) => [name, name]), bestMetric(named));
  const curves = data.curves.metrics.map((metric) => metric.name);
  fill(byId("curve-choice"), curves.map((name, i) => [String(i), name]), String(curves.indexOf(bestMetric(curves))));
  fill(byId("group-choice"), [...dimensions.map(([name], i) => [String(i), name]), ["all", "nothing: all tasks"], ["task", "task"]], "0");
  byId("metric-choice").addEventListener("change", () => redraw("metric-chart", "parallel-chart"));
  byId("curve-choice").addEventListener("change", () => redraw("curves-chart"));
  byId("group-choice").addEventListener("change", () => redraw("curves-chart"));
}

// What people look at first is measured on data held out.
function bestMetric(names) {
  return names.find((name) => /^(val|test|valid|eval)/i.test(name)) ?? names.find((name) => /acc|loss|score|err/i.test(name)) ?? names[0];
}
