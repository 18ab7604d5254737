// The page: what is chosen, asked and shown. Data comes by api.js; map, panel and tables draw it.

import { ApiError, follow, get, post } from "./api.js";
import { byId, h, plural } from "./dom.js";
import { TopologyMap } from "./map.js";
import { Panel } from "./panel.js";
import { Rates, words } from "./rates.js";
import { Tables } from "./tables.js";

const state = {
  graph: null, places: null, version: "", open: null, // null: as the server thinks best
  from: "", to: "", shown: "", trace: null, side: "there", tab: "details", asking: false, denied: [],
};
const rates = new Rates();
const stage = byId("stage");
const map = new TopologyMap(byId("canvas"), choose);
const panel = new Panel(byId("panel"), {
  from: (id) => begin(id), to: (id) => finish(id), toggle, show: (id) => show(id), explain, tab, side,
  hop: (index) => pointAt(index), light: (index) => map.light(index),
});
const tables = new Tables(byId("tables"), { from: (id) => begin(id), to: (id) => finish(id), show: (id) => show(id) });

function say(text) {
  byId("say").textContent = text;
}

let quiet = 0;
function alarm(text) {
  const box = byId("alarm");
  box.textContent = text;
  box.hidden = !text;
  clearTimeout(quiet);
  if (text) quiet = setTimeout(() => { box.hidden = true; }, 8000);
}

// ---- topology

let loading = null;
let again = false;
async function load() {
  if (loading) {
    again = true;
    return loading;
  }
  loading = (async () => {
    do {
      again = false;
      const room = byId("canvas").getBoundingClientRect();
      const query = { width: Math.max(Math.round(room.width), 300), height: Math.max(Math.round(room.height), 300) };
      if (state.open) query.open = [...state.open].join(",") || "-";
      const found = await get("api/topology", query);
      Object.assign(state, { graph: found.graph, places: found.places, version: found.version });
      byId("title").textContent = found.title;
      document.title = `${found.title} · pycni`;
      draw();
    } while (again);
  })();
  try {
    await loading;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    alarm(error.message);
  } finally {
    loading = null;
  }
}

function draw() {
  map.draw(state.graph, state.places, chosen());
  map.way(state.trace, state.side);
  map.traffic(rates);
  tables.draw(state.graph);
  byId("fold").textContent = state.places.open.length ? "Hide pods" : "Show pods";
  lists();
  if (!state.trace || state.tab === "details") details();
}

function lists() {
  const names = (kinds) => state.graph.items.filter((item) => kinds.includes(item.kind)).map((item) => word(item.id));
  const put = (id, values) => {
    const list = byId(id);
    if (list.dataset.held !== values.join()) {
      list.dataset.held = values.join();
      list.replaceChildren(...values.map((value) => h("option", { value })));
    }
  };
  put("sources", names(["pod", "node"]));
  put("targets", names(["pod", "service", "node"]));
}

/** An item as it is asked for. */
function word(id) {
  if (id.startsWith("pod:")) return id.slice(4);
  if (id.startsWith("svc:")) return `svc/${id.slice(4)}`;
  return id.replace(/^node:/, "node/");
}

function item(id) {
  return state.graph?.items.find((one) => one.id === id);
}

const chosen = () => ({ from: state.from, to: state.to, shown: state.shown });

// ---- choosing

function choose(id) {
  if (id === "svc+") return view("tables");
  if (id.startsWith("pods:")) return toggle(id.slice(5));
  const found = item(id);
  const kind = found?.kind;
  if (kind !== "pod" && kind !== "service") return show(id);
  if (state.from === id || (state.to === id && !state.trace)) return clear();
  if (state.from && !state.trace) return finish(id);
  if (kind === "pod" && state.to && !state.from) return begin(id, true);
  forget();
  if (kind === "service") {
    state.to = id;
    byId("to").value = word(id);
    show(id, `${word(id)} is the target. Choose a pod to trace from.`);
  } else begin(id);
  return undefined;
}

function begin(id, keep = false) {
  const to = keep ? state.to : "";
  forget();
  Object.assign(state, { from: id, to });
  byId("from").value = word(id);
  byId("to").value = to ? word(to) : "";
  if (to) return ask();
  return show(id, `${word(id)} is the source. Choose a second pod or a Service to trace to, Escape to leave it.`);
}

function finish(id) {
  if (!state.from) {
    state.to = id;
    byId("to").value = word(id);
    return show(id, `${word(id)} is the target. Choose a pod to trace from.`);
  }
  Object.assign(state, { to: id, trace: null });
  byId("to").value = word(id);
  return ask();
}

function forget() {
  Object.assign(state, { from: "", to: "", shown: "", trace: null, side: "there", tab: "details" });
  byId("from").value = "";
  byId("to").value = "";
  byId("port").value = "";
  byId("proto").value = "";
  map.way(null);
}

function clear() {
  forget();
  map.choose(chosen());
  details();
  say("Nothing is chosen.");
}

/** Details of one thing; words: what is said of that. */
function show(id, words = "") {
  state.shown = id;
  state.tab = "details";
  map.choose(chosen());
  details();
  const found = item(id);
  say(words || (found ? `${found.kind} ${found.name}: details are shown` : "details are shown"));
}

async function toggle(node) {
  const open = new Set(state.open || state.places.open);
  if (!open.delete(node)) open.add(node);
  state.open = open;
  say(open.has(node) ? `the pods of ${node} are shown` : `the pods of ${node} are hidden`);
  await load();
  if (open.has(node)) {
    const first = state.graph.items.find((one) => one.kind === "pod" && one.node === node);
    if (first && document.activeElement === document.body) map.rove(first.id);
  } else if (document.activeElement === document.body) map.rove(`pods:${node}`);
}

async function fold() {
  const nodes = state.graph.items.filter((one) => one.kind === "node").map((one) => one.name);
  state.open = new Set(state.places.open.length ? [] : nodes);
  await load();
}

// ---- the panel

let policyFor = "";
async function details() {
  const id = state.shown;
  const found = item(id);
  const edge = state.graph?.edges.find((one) => one.id === id);
  if (!state.graph) return;
  if (edge) panel.tunnel(edge, map.items, state.trace);
  else if (!found) {
    panel.welcome(state.graph, state.trace);
    panel.denials(state.denied);
  } else {
    panel.item(found, state.graph, live(found), state.trace);
    if (found.kind === "pod") {
      policyFor = id;
      try {
        const answer = await get("api/policy", { pod: id.slice(4) });
        if (policyFor === id) panel.policy(answer);
      } catch (error) {
        if (policyFor === id) panel.failed("policy", error.message);
      }
    }
  }
}

function live(found) {
  const edge = state.graph.edges.find((one) => one.b === found.id && one.counter);
  if (!edge) return null;
  const now = rates.edge(edge);
  return [["traffic", `${words(now.forward)} towards it, ${words(now.backward)} from it`],
    ["dropped", now.drops ? `✕ ${now.drops} since this page is open` : "none since this page is open"]];
}

function tab(name) {
  state.tab = name;
  if (name === "trace") showTrace();
  else details();
  byId(`tab-${name}`)?.focus();
}

// ---- traces

async function ask() {
  const [source, target] = [byId("from").value.trim(), byId("to").value.trim()];
  if (!source || !target || state.asking) return;
  const port = byId("port").value.trim();
  const words = `${source} → ${target}`;
  state.asking = true;
  byId("go").setAttribute("aria-disabled", "true");
  map.way(null);
  map.choose(chosen());
  panel.busy(words);
  say(`tracing ${words}`);
  try {
    const host = port && target.includes(":") && !target.startsWith("[") ? `[${target}]` : target;
    state.trace = await post("api/trace", {
      source, target: port ? `${host}:${port}` : target, protocol: byId("proto").value,
    });
    Object.assign(state, { side: "there", tab: "trace" });
    await reveal();
    showTrace(true);
    announce();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    state.trace = null;
    panel.failed("", error.message);
    alarm(error.message);
  } finally {
    state.asking = false;
    byId("go").removeAttribute("aria-disabled");
  }
}

/** Opens the nodes the trace passes pods of. */
async function reveal() {
  const nodes = new Set(state.trace.steps.map((step) => item(step.item)).filter((one) => one?.kind === "pod").map((one) => one.node));
  const closed = [...nodes].filter((node) => !state.places.open.includes(node));
  if (closed.length) {
    state.open = new Set([...(state.open || state.places.open), ...closed]);
    await load();
  }
}

function showTrace(fresh = false) {
  map.choose(chosen());
  map.way(state.trace, state.side, fresh);
  panel.trace(state.trace, state.side, state.trace.steps);
}

function announce() {
  const { trace } = state;
  const [words] = trace.question.split(": ");
  const hops = plural(trace.hops.length + trace.back.length, "hop");
  say(trace.fault
    ? `Trace ${words}: fault ${trace.fault.kind} at ${trace.fault.node}, ${trace.fault.component}: ${trace.fault.cause}`
    : `Trace ${words}: it arrives and its answer comes back, ${hops}, round trip ${Math.round(trace.round_trip_us || 0)} microseconds`);
}

function side(name) {
  state.side = name;
  showTrace();
  byId(`side-${name}`)?.focus();
}

function pointAt(index) {
  map.light(index);
  for (const row of document.querySelectorAll(".hop")) row.classList.toggle("lit", row.dataset.hop === String(index));
  const step = state.trace.steps[index];
  if (step?.item) say(`hop ${index + 1} is at ${item(step.item)?.name || step.item}`);
}

async function explain() {
  const first = state.trace.hops[0]?.packet;
  if (!first) return;
  const [source, target] = [byId("from").value.trim(), byId("to").value.trim()];
  const query = { source, destination: target.replace(/^svc\//, ""), protocol: first.protocol };
  if (first.protocol !== "icmp") query.port = String(first.destination_port);
  try {
    panel.explanation(await get("api/explain", query));
  } catch (error) {
    panel.failed("explain", error.message);
  }
}

// ---- the rest of the page

function view(name) {
  const tabled = name === "tables";
  byId("map").hidden = tabled;
  byId("tables").hidden = !tabled;
  byId("view-map").setAttribute("aria-pressed", String(!tabled));
  byId("view-tables").setAttribute("aria-pressed", String(tabled));
  if (!tabled) load();
}

function themes() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const is = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { byId("theme").textContent = is() ? "Light" : "Dark"; byId("theme").setAttribute("aria-label", `change to ${is() ? "light" : "dark"} colours`); };
  try {
    const held = localStorage.getItem("pycni-theme");
    if (held === "dark" || held === "light") root.dataset.theme = held;
  } catch { /* not allowed to remember: as the system has it */ }
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = is() ? "light" : "dark";
    try {
      localStorage.setItem("pycni-theme", root.dataset.theme);
    } catch { /* as above */ }
    name();
  });
  dark.addEventListener("change", name);
  name();
}

function wire() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const known = (text) => state.graph?.items.find((one) => word(one.id) === text || (one.kind === "pod" && one.name === text))?.id || "";
    Object.assign(state, { from: known(byId("from").value.trim()), to: known(byId("to").value.trim()), shown: "" });
    ask();
  });
  byId("clear").addEventListener("click", clear);
  byId("zoom-in").addEventListener("click", () => map.zoom(1.25));
  byId("zoom-out").addEventListener("click", () => map.zoom(0.8));
  byId("zoom-fit").addEventListener("click", () => { map.zoom(0); load(); });
  byId("fold").addEventListener("click", fold);
  byId("view-map").addEventListener("click", () => view("map"));
  byId("view-tables").addEventListener("click", () => view("tables"));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) clear();
  });
  let waiting = 0;
  new ResizeObserver(() => {
    clearTimeout(waiting);
    if (state.graph && !byId("map").hidden) waiting = setTimeout(load, 250);
  }).observe(stage);
}

function take(name, value) {
  if (name === "counters") {
    rates.take(value);
    map.traffic(rates);
    tables.traffic(rates);
    document.body.dataset.samples = String(Number(document.body.dataset.samples || 0) + 1);
  } else if (name === "topology") {
    if (value.version !== state.version) load();
  } else if (name === "denied") {
    state.denied = [...value.reverse(), ...state.denied].slice(0, 50);
    panel.denials(state.denied);
  } else if (name === "trouble") {
    alarm(value.status === 401 ? "Open the URL that pycnictl ui printed: it has the token this page needs." : value.error);
  }
}

themes();
wire();
follow("api/events", take, (mood, text) => {
  const pill = byId("live");
  pill.dataset.state = mood;
  pill.textContent = text;
});
