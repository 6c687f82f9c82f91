// The table of tasks: one page of rows exists at a time, so that its size does not matter.
const ROWS = 50;
const COLUMNS_SHOWN = 12;
const view = { rows: [], page: 0, column: null, down: false };
const haystacks = [];

const total = (task) => attemptsOf(task).reduce((sum, i) => sum + attempts.duration[i], 0);
const columns = [
  { name: "task", value: (i) => tasks.name[i] },
  { name: "state", value: (i) => data.states[tasks.state[i]] },
  { name: "attempts", value: (i) => tasks.attempts[i], isNumber: true },
  { name: "time", value: (i) => tasks.attempts[i] ? total(i) : null, text: duration, isNumber: true },
  ...dimensions.slice(0, COLUMNS_SHOWN).map(valueColumn),
  { name: "seed", value: (i) => tasks.seed[i], isNumber: true },
  ...data.metrics.slice(0, COLUMNS_SHOWN).map(valueColumn),
  { name: "error", value: (i) => tasks.error[i] < 0 ? null : data.errors[tasks.error[i]], kind: "error" },
];

function valueColumn([name, values]) {
  return { name, value: (i) => values[i], isNumber: values.every((value) => value === null || isNumber(value)), kind: "value" };
}

function showTable() {
  fill(byId("state-choice"), [["", "all"], ...data.states.map((state) => [state, state])], "");
  const head = columns.map((column) => {
    const button = element("button", { type: "button", text: column.name, title: column.name });
    const cell = element("th", { class: column.isNumber ? "number" : "", scope: "col" }, button);
    button.addEventListener("click", () => sortBy(column));
    column.head = cell;
    return cell;
  });
  byId("task-table").append(
    element("thead", {}, element("tr", {}, ...head, element("th", { text: "log", scope: "col" }))), element("tbody"));
  byId("filter").addEventListener("input", refresh);
  byId("state-choice").addEventListener("change", refresh);
  byId("page-back").addEventListener("click", () => turn(-1));
  byId("page-on").addEventListener("click", () => turn(1));
  refresh();
}

function sortBy(column) {
  view.down = view.column === column && !view.down;
  view.column = column;
  for (const one of columns) one.head.removeAttribute("aria-sort");
  column.head.setAttribute("aria-sort", view.down ? "descending" : "ascending");
  refresh();
}

function refresh() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = data.states.indexOf(byId("state-choice").value);
  view.rows = tasks.name.map((_, i) => i).filter((i) => (state < 0 || tasks.state[i] === state)
    && (!words.length || words.every((one) => haystack(i).includes(one))));
  if (view.column) sortRows();
  view.page = 0;
  showPage();
}

function sortRows() {
  const keys = new Map(view.rows.map((i) => [i, view.column.value(i)]));
  const sign = view.down ? -1 : 1;
  view.rows.sort((a, b) => {
    const [left, right] = [keys.get(a), keys.get(b)];
    if (left === null || right === null) return (left === null) - (right === null) || a - b; // what is missing comes last
    return sign * order(left, right) || a - b;
  });
}

const collator = new Intl.Collator("en", { numeric: true });
function order(a, b) {
  if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1;
  return isNumber(a) ? a - b : collator.compare(a, b);
}

function haystack(i) {
  haystacks[i] ??= [
    tasks.name[i], data.states[tasks.state[i]], ...dimensions.map(([name, values]) => `${name}=${number(values[i])}`),
    ...attemptsOf(i).map((at) => data.workers[attempts.worker[at]]), tasks.error[i] < 0 ? "" : data.errors[tasks.error[i]],
  ].join("\n").toLowerCase();
  return haystacks[i];
}

function turn(by) {
  view.page += by;
  showPage();
}

function showPage() {
  const first = view.page * ROWS;
  const shown = view.rows.slice(first, first + ROWS);
  byId("task-table").tBodies[0].replaceChildren(...shown.map(row));
  byId("page-text").textContent = shown.length
    ? `${count(first + 1)} to ${count(first + shown.length)} of ${several(view.rows.length, "task")}` : "No task matches.";
  byId("page-back").disabled = view.page === 0;
  byId("page-on").disabled = first + ROWS >= view.rows.length;
}

function row(i) {
  const made = element("tr", {}, ...columns.map((column) => cell(i, column)));
  const last = attemptsOf(i).at(-1);
  made.append(element("td", {}, last === undefined ? "" : logLink(tasks.name[i], attempts.number[last], "log")));
  return made;
}

function cell(i, column) {
  const value = column.value(i);
  const text = value === null ? "" : column.text ? column.text(value) : number(value);
  if (column.name === "task" && column === columns[0]) return element("td", {}, opener(i, text));
  if (column === columns[1]) return element("td", {}, dot(text), text);
  const kind = (column.isNumber ? "number " : "") + (column.kind || "");
  return element("td", { text: cut(text, 200), class: kind, title: text.length > 24 ? text : "" });
}

function opener(i, text) {
  const button = element("button", { type: "button", class: "open", text, "aria-expanded": "false" });
  button.addEventListener("click", () => {
    const line = button.closest("tr");
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) line.nextElementSibling.remove();
    else line.after(detail(i));
  });
  return button;
}

function detail(i) {
  const found = attemptsOf(i).map((at) => {
    const error = attempts.error[at] < 0 ? "" : `: ${data.errors[attempts.error[at]]}`;
    return element("li", {}, dot(outcomeOf(at)), logLink(tasks.name[i], attempts.number[at], `attempt ${attempts.number[at]}`),
      ` ${word(outcomeOf(at))} on ${data.workers[attempts.worker[at]]}, from ${instant(attempts.start[at])}, ${duration(attempts.duration[at])}${error}`);
  });
  const inside = found.length ? element("ul", {}, ...found) : "This task has not been started.";
  return element("tr", { class: "detail" }, element("td", { colSpan: columns.length + 1 }, inside));
}
