// Charts are drawn when they come near the screen, and again when the width, the colours or a
// choice changes.
const charts = new Map();
const CONFIG = {
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};
const hasWebgl = (() => {
  try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch { return false; }
})();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function axis(more = {}) {
  return {
    gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true,
    tickfont: { color: colour("quiet") }, fixedrange: false, ...more,
  };
}

function layout(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
    margin: { l: 48, r: 12, t: 8, b: 36 }, hovermode: "closest", dragmode: "zoom",
    hoverlabel: { bgcolor: colour("page"), bordercolor: colour("quiet"),
      font: { color: colour("text") }, align: "left" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: colour("text") } },
    showlegend: false, ...more,
  };
}

// `build(width)` returns {traces, layout}, or a text that says why there is nothing to draw.
function chart(id, build) {
  charts.set(id, { place: byId(id), build, drawn: false });
  watcher.observe(byId(id));
}

const watcher = new IntersectionObserver((seen) => {
  for (const one of seen) {
    if (one.isIntersecting) {
      watcher.unobserve(one.target);
      waiting.push(one.target.id);
    }
  }
  setTimeout(drawNext);
}, { rootMargin: "300px" });

// One at a time, so that the page can be scrolled meanwhile.
const waiting = [];
function drawNext() {
  const id = waiting.shift();
  if (id === undefined) return;
  draw(id);
  setTimeout(drawNext);
}

function draw(id) {
  const one = charts.get(id);
  const width = one.place.clientWidth;
  const made = one.build(width);
  one.drawn = true;
  one.width = width;
  one.place.classList.add("drawn");
  if (typeof made === "string") {
    Plotly.purge(one.place);
    one.place.textContent = made;
    one.place.classList.add("empty");
    return;
  }
  if (one.place.classList.contains("empty")) {
    one.place.textContent = "";
    one.place.classList.remove("empty");
  }
  Plotly.react(one.place, made.traces, { ...made.layout, width }, CONFIG);
}

function redraw(...ids) {
  for (const id of ids) if (charts.get(id).drawn) draw(id);
}

let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    for (const [id, one] of charts) if (one.drawn && one.width !== one.place.clientWidth) draw(id);
  }, 150);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(...charts.keys()));
// On paper the colours are the light ones, and everything is drawn.
matchMedia("print").addEventListener("change", () => { for (const id of charts.keys()) draw(id); });
window.addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
