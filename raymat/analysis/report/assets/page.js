"use strict";
// Draws the charts of a page from the data in it. What came from storage reaches the page as text alone.
const DATA = JSON.parse(document.getElementById("data").textContent);
const ROUTINE = ["data wait", "save stall", "validation"].map((cause) => DATA.causes.indexOf(cause));
const charts = [];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Steps are whole: no axis of them has a mark between two.
const WHOLE = Array.from({ length: 30 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3));
const short = (v) => (v == null ? "-" : Number(v.toPrecision(4)).toString());

function axis(extra) {
  return { stroke: () => color("dim"), grid: { stroke: () => color("grid"), width: 1 }, ticks: { stroke: () => color("grid") },
    font: "11px sans-serif", ...extra };
}

function draw(box, title, height, options, data) {
  const size = () => ({ width: Math.max(240, box.clientWidth), height });
  const chart = new uPlot({ title, ...size(), cursor: { drag: { x: true, y: false } }, ...options }, data, box);
  charts.push(chart);
  // A page may be drawn before it has a width: in a frame, or in a tab that was opened behind another.
  const fit = () => { if (box.clientWidth > 0 && Math.abs(size().width - chart.width) > 1) chart.setSize(size()); };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(box);
  return chart;
}

function line(label, stroke, extra) {
  return { label, stroke: () => color(stroke), width: 1.5, spanGaps: true, points: { show: false },
    value: (u, v) => short(v), ...extra };
}

// Curves by step, of one run or of several in one chart.
function curve(box, title, runs, parts, options) {
  const tables = [], series = [{ label: "step", value: (u, v) => short(v) }];
  for (const [number, run] of runs) {
    for (const part of parts(run, number)) {
      const known = part.values.filter((v) => v != null).length;
      if (!known) continue;
      tables.push([part.steps, part.values]);
      const alone = known === 1 ? { points: { show: true, size: 6 } } : {};  // one value makes no line
      series.push(line(runs.length > 1 ? `${run.name} ${part.label}` : part.label, part.color, { ...alone, ...part.extra }));
    }
  }
  if (!tables.length) return;
  draw(box, title, 230, { scales: { x: { time: false } }, axes: [axis({ incrs: WHOLE }), axis({ size: 62 })], ...options, series },
    uPlot.join(tables));
}

const KINDS = {
  loss: (box, runs) => curve(box, "training loss", runs, (run, n) => [
    { steps: run.train.steps, values: run.train.loss, label: "loss", color: `run${n % 8}` }]),
  valid: (box, runs) => curve(box, runs.length > 1 ? "validation" : `validation: ${runs[0][1].valid.metric}`, runs, (run, n) => {
    const parts = [{ steps: run.valid.steps, values: run.valid.values, label: run.valid.metric, color: `run${n % 8}`,
      extra: { points: { show: run.valid.steps.length < 80, size: 5, fill: () => color("paper") } } }];
    if (run.valid.best && runs.length === 1) parts.push({ steps: [run.valid.best[0]], values: [run.valid.best[1]], label: "best", color: "bad",
      extra: { points: { show: true, size: 10, width: 2, fill: () => color("paper") } } });
    return parts;
  }),
  speed: (box, runs) => {
    const alone = runs.length === 1;
    curve(box, alone ? "examples a second, and the share of a step that waits for data" : "examples a second", runs, (run, n) => [
      { steps: run.train.steps, values: run.train.examples_per_second, label: "examples/s", color: `run${n % 8}` },
      ...(alone ? [{ steps: run.train.steps, values: run.train.data_wait, label: "data wait", color: "run1",
        extra: { scale: "share", value: (u, v) => (v == null ? "-" : `${(100 * v).toFixed(1)}%`) } }] : [])],
    alone ? { scales: { x: { time: false }, share: { range: [0, 1] } }, axes: [axis({ incrs: WHOLE }), axis({ size: 62 }),
      axis({ scale: "share", side: 1, size: 46, grid: { show: false }, values: (u, vs) => vs.map((v) => `${Math.round(100 * v)}%`) })]
    } : {});
  },
  lr: (box, runs) => curve(box, "learning rates", runs, (run) => Object.keys(run.train.lr).map((name, i) => (
    { steps: run.train.steps, values: run.train.lr[name], label: name, color: `run${i % 8}` })),
  { axes: [axis({ incrs: WHOLE }), axis({ size: 62, values: (u, vs) => vs.map((v) => (v ? v.toExponential(0) : "0")) })] }),
  time: (box, runs) => timeline(box, runs[0][1]),
  steps: (box, runs) => progress(box, runs[0][1]),
};

// A time axis in UTC, with the date below the first label of each day.
function clock(u, times, index, space, step) {
  let day = "";
  return times.map((t) => {
    const [date, time] = new Date(t * 1e3).toISOString().split("T");
    const shown = step >= 86400 ? date : time.slice(0, step < 60 ? 8 : 5) + (date === day ? "" : `\n${date}`);
    day = date;
    return shown;
  });
}
const moment = (u, v) => (v == null ? "-" : new Date(v * 1e3).toISOString().slice(0, 19).replace("T", " "));
const UTC = { tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC") };

// Charts over one run's time show the same stretch of it.
function together(charts) {
  for (const chart of charts) {
    (chart.hooks.setScale ||= []).push((u, key) => {
      const { min, max } = u.scales.x;
      if (key !== "x" || min == null) return;
      for (const other of charts) {
        if (other !== u && (other.scales.x.min !== min || other.scales.x.max !== max)) other.setScale("x", { min, max });
      }
    });
  }
}

function timeline(box, run) {
  const time = run.time, spans = time.spans;
  if (!spans.length) return;
  const edges = [...new Set(spans.flatMap((s) => [s[0], s[1]]))].sort((x, y) => x - y), none = edges.map(() => null);
  const here = (u) => (u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null);
  const told = (tell) => (u) => {
    const at = here(u), span = at === null ? null : spans.findLast((s) => s[3] === 0 && s[0] <= at && at < s[1]);
    return span ? tell(span) : "-";
  };
  const slots = Math.max(...spans.map((s) => s[4]));
  const hidden = { stroke: "transparent", points: { show: false } };
  const said = box.parentElement.querySelector(".said"), hint = said.textContent;
  const chart = draw(box, "workers, coloured by what their time went into", 200, {
    ...UTC,
    scales: { y: { range: [0, slots * 1.18] } },
    axes: [axis({ values: clock, space: 70 }), axis({ size: 62, incrs: WHOLE })],
    series: [{ label: "time", value: (u) => moment(u, here(u)) }, { label: "workers", ...hidden, value: told((s) => s[4]) },
      { label: "cause", ...hidden, value: told((s) => DATA.causes[s[2]]) }, { label: "attempt", ...hidden, value: told((s) => s[5]) }],
    hooks: {
      drawClear: [(u) => paint(u, spans)],
      draw: [(u) => mark(u, time)],
      setCursor: [(u) => { said.textContent = near(u, time.marks) || hint; }],
    },
  }, [edges, none, none, none]);
  box.chart = chart;
}

function paint(u, spans) {
  const c = u.ctx, { left, top, width, height } = u.bbox, colors = DATA.causes.map((_, i) => color(`c${i}`));
  c.save(); c.beginPath(); c.rect(left, top, width, height); c.clip();
  for (const [begin, end, cause, low, high] of spans) {
    const x = u.valToPos(begin, "x", true), right = u.valToPos(end, "x", true);
    if (right < left || x > left + width) continue;
    const y = u.valToPos(high, "y", true);
    c.fillStyle = colors[cause];
    // What is short is drawn wide enough to be seen, but for what comes again and again: together that would hide the rest.
    c.fillRect(x, y, ROUTINE.includes(cause) ? right - x : Math.max(0.7, right - x), u.valToPos(low, "y", true) - y);
  }
  c.restore();
}

function mark(u, time) {
  const c = u.ctx, { left, top, width, height } = u.bbox, unit = devicePixelRatio || 1;
  const shades = { bad: color("bad"), warn: color("warn"), note: color("note") };
  const inside = (x) => x >= left && x <= left + width;
  c.save();
  const ticks = (times, shade, from, to) => {
    let last = -Infinity;
    c.fillStyle = color(shade);
    for (const at of times) {
      const x = u.valToPos(at, "x", true);
      if (!inside(x) || x - last < 3 * unit) continue;
      c.fillRect(x, top + height - to * unit, unit, (to - from) * unit);
      last = x;
    }
  };
  ticks(time.commits, "ink", 0, 4);
  ticks(time.validations, "c4", 4, 9);
  for (const level of ["note", "warn", "bad"]) {
    c.fillStyle = shades[level];
    for (const [at, how] of time.marks) {
      const x = u.valToPos(at, "x", true);
      if (how !== level || !inside(x)) continue;
      c.beginPath(); c.moveTo(x - 5 * unit, top); c.lineTo(x + 5 * unit, top); c.lineTo(x, top + 9 * unit); c.fill();
    }
  }
  c.restore();
}

// The marks within a few pixels of the cursor, in words.
function near(u, marks) {
  const at = u.cursor.left;
  if (at == null || at < 0) return "";
  const found = marks.filter(([when]) => Math.abs(u.valToPos(when, "x") - at) < 6).map(([, , words]) => words);
  return found.length > 2 ? `${found.slice(-2).join(" | ")} | and ${found.length - 2} more` : found.join(" | ");
}

function progress(box, run) {
  const steps = run.time.steps, first = box.parentElement.querySelector('[data-chart="time"]');
  if (!steps.length || !first.chart) return;
  const chart = draw(box, "completed steps: where the line goes back, steps were done again", 170, {
    ...UTC, axes: [axis({ values: clock, space: 70 }), axis({ size: 62, incrs: WHOLE })], series: [{ label: "time", value: moment },
      line("step", "run0", { spanGaps: false, points: { show: false } })],
  }, [steps.map((s) => s[0]), steps.map((s) => s[1])]);
  together([first.chart, chart]);
  const whole = [run.time.spans[0][0], Math.max(...run.time.spans.map((s) => s[1]))];
  first.chart.setScale("x", { min: whole[0], max: whole[1] });
  for (const button of box.parentElement.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoom(first.chart, whole, button.dataset.zoom));
  }
}

function zoom(chart, whole, how) {
  let { min, max } = chart.scales.x;
  const width = max - min;
  if (how === "all") [min, max] = whole;
  if (how === "in") [min, max] = [min + width / 4, max - width / 4];
  if (how === "out") [min, max] = [Math.max(whole[0], min - width / 2), Math.min(whole[1], max + width / 2)];
  const shift = how === "left" ? -Math.min(width / 2, min - whole[0]) : how === "right" ? Math.min(width / 2, whole[1] - max) : 0;
  chart.setScale("x", { min: min + shift, max: max + shift });
}

for (const box of document.querySelectorAll(".chart")) {
  const chosen = box.dataset.run, all = [...DATA.runs.entries()];
  KINDS[box.dataset.chart](box, chosen === undefined ? all : [all[Number(chosen)]]);
}
for (const field of document.querySelectorAll(".find")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of field.parentElement.querySelectorAll("tbody tr")) {
      row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
    }
  });
}
const again = () => charts.forEach((chart) => chart.redraw(false, true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
addEventListener("beforeprint", () => { document.documentElement.classList.add("light"); again(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("light"); again(); });
document.documentElement.dataset.drawn = String(charts.length);
