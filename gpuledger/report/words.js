// Data in, text out. What comes from the ledger becomes text (textContent) or, for Plotly, which
// reads a little HTML in labels and hovers, escaped text (`label`).
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const tasks = data.tasks;
const attempts = data.attempts;
const byId = (id) => document.getElementById(id);

const WORDS = { timed_out: "timed out", oom: "out of memory" };
const word = (outcome) => WORDS[outcome] || outcome;
const outcomeOf = (attempt) => data.outcomes[attempts.outcome[attempt]];
const hostOf = (worker) => worker.slice(0, worker.lastIndexOf(":")) || worker;
const count = (n) => n.toLocaleString("en");
const several = (n, noun) => count(n) + " " + noun + (n === 1 ? "" : "s");

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function dot(outcome) {
  const made = element("span", { class: "dot" });
  made.style.background = `var(--${outcome})`;
  return made;
}

function cut(text, length) {
  return text.length > length ? text.slice(0, length - 1) + "…" : text;
}

function label(text, length = 60) {
  return cut(String(text), length)
    .replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function lines(...parts) {
  return parts.filter((part) => part !== "").map((part) => label(part, 90)).join("<br>");
}

function number(value) {
  if (typeof value !== "number") return value === null || value === undefined ? "" : String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e12) return String(value);
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds < 9.95) return seconds.toFixed(1) + " s";
  const whole = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return whole + " s";
  if (whole < 3600) return Math.floor(whole / 60) + "m " + two(whole % 60) + "s";
  if (whole < 86400) return Math.floor(whole / 3600) + "h " + two(Math.floor(whole % 3600 / 60)) + "m";
  return Math.floor(whole / 86400) + "d " + two(Math.floor(whole % 86400 / 3600)) + "h";
}

// An instant in the reader's time zone, as a text that Plotly takes as it stands.
function local(seconds) {
  const ms = (data.origin + seconds) * 1000;
  return new Date(ms - new Date(ms).getTimezoneOffset() * 60000).toISOString().slice(0, -1);
}

function instant(seconds) {
  return local(seconds).slice(0, 16).replace("T", " ");
}

function logLink(name, attempt, text) {
  const href = `${data.logs}/${encodeURIComponent(name)}/attempt-${attempt}.log`;
  return element("a", { href, text, target: "_blank", rel: "noreferrer" });
}

// Attempts lie one after another in the order of the tasks: where each task's begin.
const firstAttempt = [];
tasks.attempts.reduce((sum, n, i) => (firstAttempt[i] = sum) + n, 0);
function attemptsOf(task) {
  return Array.from({ length: tasks.attempts[task] }, (_, i) => firstAttempt[task] + i);
}
