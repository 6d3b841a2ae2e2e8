// The report page: a sortable, filterable table and charts that follow it. Data is JSON in #data.
const { rows, charts, theme, places, tokens, layers } = JSON.parse(document.getElementById("data").textContent);
const table = document.querySelector("#rows table");
const body = table.tBodies[0];
const lines = [...body.rows];
const heads = [...table.tHead.rows[0].cells];
const choose = document.getElementById("choose");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const views = new Map(); // chart id -> Vega view
window.tpbench = { views };

// ---------------------------------------------------------------- rows

const byId = new Map(rows.map((row) => [row.id, row]));
for (const line of lines) {
  const row = byId.get(Number(line.dataset.id));
  row.tooltip = { title: line.cells[0].textContent };
  heads.slice(1).forEach((head, place) => {
    const cell = line.cells[place + 1];
    if (head.dataset.kind === "text") cell?.classList.add("left");
    if (cell?.textContent && !cell.classList.contains("failure")) row.tooltip[words(head)] = cell.textContent;
  });
}
heads.forEach((head) => head.dataset.kind === "text" && (head.style.textAlign = "left"));

function words(head) {
  return [...head.firstChild.childNodes].map((part) => part.textContent).join(", ");
}

// ---------------------------------------------------------------- sorting

// Numbers sort by all numbers of their text, "1-19" before "1-21"; blanks come last either way.
function sortKey(cell, kind) {
  const text = cell && !cell.classList.contains("failure") ? cell.textContent.trim() : "";
  if (kind === "text") return text;
  const found = text.match(/^[-+]?\d+(\.\d+)?|\d+(\.\d+)?/g);
  return text === "all" ? [Infinity] : found ? found.map(Number) : "";
}

function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
  for (let place = 0; place < Math.min(a.length, b.length); place++) {
    if (a[place] !== b[place]) return a[place] - b[place];
  }
  return a.length - b.length;
}

function sortBy(place) {
  const head = heads[place];
  const kind = head.dataset.kind;
  const first = kind === "text" || words(head).startsWith("Rank") ? "ascending" : "descending";
  const other = { ascending: "descending", descending: "ascending" };
  const way = head.ariaSort === "none" ? first : other[head.ariaSort];
  heads.forEach((each) => (each.ariaSort = each === head ? way : "none"));
  const sign = way === "ascending" ? 1 : -1;
  const keyed = [...body.rows].map((line) => ({ line, key: sortKey(line.cells[place], kind) }));
  keyed.sort((a, b) => {
    if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
    return sign * compare(a.key, b.key);
  });
  body.append(...keyed.map((each) => each.line));
}
heads.forEach((head, place) => head.firstChild.addEventListener("click", () => sortBy(place)));

// ---------------------------------------------------------------- choosing rows

const buttons = [...choose.querySelectorAll(".family")];
let on = false; // the signal of all charts: false, or an object that names the chosen rows

function chosen() {
  const families = new Set(buttons.filter((each) => each.ariaPressed === "true").map((each) => each.dataset.family));
  const find = choose.elements.find.value.trim().toLowerCase();
  const schedule = choose.elements.schedule.value;
  const study = choose.elements.study?.value ?? "";
  return (line) => {
    const base = line.classList.contains("base");
    return (
      (!families.size || families.has(line.dataset.family)) &&
      (!find || `${line.cells[0].textContent} ${line.cells[0].title}`.toLowerCase().includes(find)) &&
      (!schedule || base || line.dataset.schedule === schedule) &&
      (!study || line.dataset.study === study)
    );
  };
}

function filter() {
  const wanted = chosen();
  let count = 0;
  const ids = {};
  for (const line of lines) {
    line.hidden = !wanted(line);
    if (!line.hidden) ids[line.dataset.id] = true;
    count += !line.hidden;
  }
  on = count === lines.length ? false : ids;
  choose.querySelector("output").textContent = `${count} of ${lines.length} rows`;
  for (const view of views.values()) view.signal("on", on).runAsync();
}
for (const button of buttons) {
  button.addEventListener("click", () => {
    button.ariaPressed = String(button.ariaPressed !== "true");
    filter();
  });
}
choose.addEventListener("input", filter);
choose.addEventListener("submit", (event) => event.preventDefault());
choose.addEventListener("reset", () => {
  buttons.forEach((button) => (button.ariaPressed = "false"));
  setTimeout(filter); // after the fields are empty again
});

// ---------------------------------------------------------------- data of a chart

const picks = new Map([...document.querySelectorAll(".pick")].map((form) => [Number(form.dataset.study), form]));

// What stands out comes last, and so lies above the rest.
function ofStudy(study) {
  const loud = (row) => Number(row.ours === true || row.front !== undefined);
  return rows.filter((row) => row.study === study).sort((a, b) => loud(a) - loud(b));
}

function atSchedule(study, schedule) {
  return ofStudy(study).filter((row) => row.schedule === schedule);
}

function named(chart) {
  const { study, at } = charts[chart];
  const own = ofStudy(study);
  const cost = chart.split("-")[0];
  const form = picks.get(study);
  const schedule = at || form?.elements.schedule.value;
  const base = own.filter((row) => row.base);
  const some = atSchedule(study, schedule);
  return {
    rows: own,
    front: own.filter((row) => row.front?.includes(cost)),
    chosen: some,
    tokens: [...base, ...some].flatMap(tokenPoints),
    layers: [...base, ...some.filter((row) => String(row.id) === form?.elements.method.value)].flatMap(layerBars),
  };
}

function tokenPoints(row) {
  const { id, family, ours, base, front } = row;
  return (tokens[id] ?? []).map((count, block) => ({
    id, family, ours, base, front, block, tokens: count,
    tooltip: { title: row.method, schedule: row.schedule, "after block": block, tokens: count },
  }));
}

function layerBars(row) {
  return (layers[row.id] ?? []).map(([place, mmacs, ms], order) => {
    const [block, kind] = places[place];
    const tooltip = { title: row.method, block, kind, "million multiply-adds": mmacs };
    if (ms !== null) tooltip.milliseconds = ms;
    return { id: row.id, base: row.base === true, block: block.replace("patch_embed", "embed"), kind, mmacs, ms, order, tooltip };
  });
}

// ---------------------------------------------------------------- the two selects of the layers

function fillMethods(form) {
  const study = Number(form.dataset.study);
  const { schedule, method } = form.elements;
  const before = byId.get(Number(method.value))?.method;
  const some = atSchedule(study, schedule.value).filter((row) => layers[row.id] && !row.base);
  method.replaceChildren(...some.map((row) => new Option(row.method, row.id)));
  const kept = some.find((row) => row.method === before) ?? some.find((row) => row.verdict === "reference");
  if (kept) method.value = kept.id;
}
for (const [study, form] of picks) {
  fillMethods(form);
  form.addEventListener("change", (event) => {
    if (event.target.name === "schedule") fillMethods(form);
    for (const [chart, view] of views) {
      if (charts[chart].study !== study || charts[chart].at) continue;
      const data = named(chart);
      const { spec } = charts[chart];
      const read = new Set([spec, ...spec.layer].map((part) => part.data?.name));
      for (const name of ["chosen", "tokens", "layers"]) {
        if (read.has(name)) view.data(name, data[name]);
      }
      view.runAsync();
    }
  });
}

// ---------------------------------------------------------------- drawing

function config() {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const colours = dark.matches ? theme.dark : theme.light;
  const text = { labelColor: soft, titleColor: ink, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" };
  return {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: { ...text, gridColor: line, gridOpacity: 0.5, domainColor: line, tickColor: line, labelLimit: 140 },
    axisX: { tickCount: 6, titleAnchor: "end" },
    legend: text,
    range: { category: colours, symbol: theme.symbols },
    style: {
      front: { color: soft, strokeWidth: 6, opacity: 0.25, strokeCap: "round", strokeJoin: "round" },
      name: { color: ink, fontSize: 11 },
      margin: { color: soft, opacity: 0.15 },
      zero: { color: soft, strokeDash: [4, 3], opacity: 0.9 },
      base: { color: ink },
      unreduced: { color: ink },
    },
  };
}

async function draw(place) {
  const chart = place.dataset.chart;
  const { spec } = charts[chart];
  const options = {
    config: config(),
    renderer: rows.length > 400 ? "canvas" : "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: "custom" },
    downloadFileName: chart,
  };
  const result = await vegaEmbed(place, { ...spec, datasets: { ...spec.datasets, ...named(chart) } }, options);
  views.set(chart, result.view);
  if (on !== false) await result.view.signal("on", on).runAsync();
  place.dataset.drawn = "true";
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  },
  { rootMargin: "300px" },
);
const plots = [...document.querySelectorAll(".plot")];
plots.forEach((plot) => seen.observe(plot));

function paint() {
  const colours = dark.matches ? theme.dark : theme.light;
  for (const button of buttons) {
    button.querySelector("path").setAttribute("fill", colours[theme.families.indexOf(button.dataset.family)]);
  }
}
dark.addEventListener("change", () => {
  paint();
  plots.filter((plot) => plot.dataset.drawn).forEach(draw);
});
window.addEventListener("beforeprint", () => plots.filter((plot) => !plot.dataset.drawn).forEach(draw));
paint();
filter();
