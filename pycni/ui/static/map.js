// The map: an SVG drawn from the graph and its places; rates and traces are laid over it without drawing it anew.

import { cut, plural, s } from "./dom.js";
import { words } from "./rates.js";

const SHOWN = 1000; // bits/s from which a rate is written
const MOVING = 400; // and from which an edge moves
const RAIL = 8; // how near to a rail a point is on it
const MARK = { bad: "✕", warn: "▲" };
const KINDS = {
  node: "node", host: "routing of", uplink: "uplink", tunnel: "tunnel device", bridge: "bridge", pod: "pod",
  service: "Service", peer: "outside", underlay: "", pods: "pods of", tunnels: "tunnel",
};
const STATES = { bad: "broken", warn: "not as wanted" };

const thick = (bits) => Math.min(1.6 + Math.log10(1 + bits / 1000) * 1.25, 10);
const line = (points) => points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const curve = ([a, b, c, d]) => `M${a} C${b} ${c} ${d}`.replaceAll(",", " ");

/** A point of a cubic curve. */
function onCurve([a, b, c, d], t) {
  const u = 1 - t;
  return [0, 1].map((i) => u ** 3 * a[i] + 3 * u * u * t * b[i] + 3 * u * t * t * c[i] + t ** 3 * d[i]);
}

/** Middle of the longest part of a line. */
function middle(path) {
  if (path.curve) return onCurve(path.points, 0.5);
  let best = 0;
  let at = path.points[0];
  for (let i = 1; i < path.points.length; i += 1) {
    const [a, b] = [path.points[i - 1], path.points[i]];
    const size = Math.hypot(b[0] - a[0], b[1] - a[1]);
    if (size > best) [best, at] = [size, [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]];
  }
  return at;
}

export class TopologyMap {
  /** act(id, event): something was chosen. */
  constructor(svg, act) {
    this.svg = svg;
    this.act = act;
    this.items = new Map();
    this.edges = new Map();
    this.view = null; // [x, y, w, h]; null: everything
    this.roving = "";
    this.wire();
  }

  // ---- drawing

  draw(graph, places, chosen) {
    this.graph = graph;
    this.places = places;
    this.items = new Map(graph.items.map((item) => [item.id, item]));
    this.edges = new Map(graph.edges.map((edge) => [edge.id, edge]));
    this.things = new Map(); // id -> {element, box}
    this.live = new Map(); // edge id -> {flow, rate, drop}
    const held = document.activeElement?.closest?.("#canvas .thing")?.dataset.id;
    const layers = ["rails", "boxes", "edges", "backs", "flows", "ways", "things", "labels", "badges"];
    this.layer = Object.fromEntries(layers.map((name) => [name, s("g", { class: name })]));
    this.svg.replaceChildren(...layers.map((name) => this.layer[name]));
    this.rails();
    for (const item of graph.items) if (item.kind === "node") this.node(item);
    for (const edge of graph.edges) this.edge(edge);
    for (const item of graph.items) this.item(item);
    this.more();
    this.headings();
    for (const edge of graph.edges) if (edge.kind === "tunnel") this.arc(edge);
    if (!this.things.has(this.roving)) this.roving = this.first();
    this.things.get(this.roving)?.element.setAttribute("tabindex", "0");
    this.fit();
    this.choose(chosen);
    if (held && this.things.has(held)) this.things.get(held).element.focus();
  }

  first() {
    for (const kind of ["pod", "pods", "node"]) {
      const found = [...this.things].find(([id]) => id.startsWith(`${kind}:`));
      if (found) return found[0];
    }
    return this.things.keys().next().value || "";
  }

  rails() {
    const rails = this.places.rails;
    for (const [from, to, y] of rails) this.layer.rails.append(s("path", { class: "rail", d: `M${from} ${y}H${to}` }));
    if (rails.length > 1) {
      const ys = rails.map((rail) => rail[2]);
      this.layer.rails.append(s("path", { class: "rail", d: `M${rails[0][0]} ${Math.min(...ys)}V${Math.max(...ys)}` }));
    }
  }

  /** A group that can be chosen, with a shape of its box's size. */
  thing(id, kind, box, label, state, layer = this.layer.things) {
    const [x, y, w, height] = box;
    const element = s("g", {
      class: `thing ${kind}`, role: "button", tabindex: "-1", "aria-label": label, "aria-pressed": "false",
      data: { id, state: state || "ok" },
    });
    element.append(
      s("rect", { class: "shape", x, y, width: w, height, rx: kind === "pod" ? 8 : 6 }),
      s("rect", { class: "ring", x: x - 4, y: y - 4, width: w + 8, height: height + 8, rx: 9 }),
    );
    layer.append(element);
    this.things.set(id, { element, box });
    return element;
  }

  say(item) {
    const parts = [`${KINDS[item.kind] ?? item.kind} ${item.kind === "host" ? item.node : this.full(item)}`.trim()];
    if (item.node && !["node", "host"].includes(item.kind)) parts.push(`on ${item.node}`);
    if (item.label && item.kind !== "pod") parts.push(item.label);
    if (item.kind === "pod") parts.push(this.fact(item, "addresses"));
    if (item.state !== "ok") parts.push(`${STATES[item.state]}: ${item.note}`);
    return parts.filter(Boolean).join(", ");
  }

  full(item) {
    return ["pod", "service"].includes(item.kind) ? item.id.slice(4) : item.name;
  }

  fact(item, name) {
    return item.facts.find((fact) => fact[0] === name && fact[1])?.[1] || "";
  }

  node(item) {
    const box = this.places.boxes[item.id];
    if (!box) return;
    const [x, y, w, height] = box;
    const state = item.state;
    this.layer.boxes.append(
      s("rect", { class: "node-box", x, y, width: w, height, rx: 11, data: { state } }),
    );
    const open = this.places.open.includes(item.name);
    const top = open ? y + 7 : y + 22;
    const label = cut(item.label, 22);
    const wide = Math.max(item.name.length * 8.4 + (state === "ok" ? 0 : 18), label.length * 6.4, 44) + 12;
    const group = this.thing(item.id, "node", [x + 7, top, wide, 36], this.say(item), state);
    const mark = MARK[state];
    group.append(
      s("text", { class: "strong", x: x + 13, y: top + 15, "font-size": 14 }, item.name),
      s("text", { class: "small", x: x + 13, y: top + 30 }, label),
    );
    if (mark) {
      group.append(s("text", { class: `mark ${state}`, x: x + 20 + item.name.length * 9, y: top + 15 }, mark));
    }
  }

  item(item) {
    const box = this.places.boxes[item.id];
    if (!box || item.kind === "node") return;
    const [x, y, w, height] = box;
    if (item.kind === "underlay") {
      const text = `${item.name}  ${item.label}`;
      const group = this.thing(item.id, "underlay", [x - 4, y - 22, text.length * 6.3 + 10, 19], this.say(item), item.state);
      group.append(
        s("text", { class: "small", x: x + 2, y: y - 9 },
          s("tspan", { class: "strong", fill: "currentColor" }, item.name), `  ${item.label}`),
      );
      return;
    }
    const group = this.thing(item.id, item.kind, box, this.say(item), item.state);
    const mark = MARK[item.state];
    const put = (text, dx, dy, name = "", more = {}) =>
      group.append(s("text", { class: name, x: x + dx, y: y + dy, ...more }, text));
    if (["uplink", "tunnel"].includes(item.kind)) {
      put(item.name, w / 2, 15, "strong", { "text-anchor": "middle", "font-size": 11.5 });
      put(cut(item.label, 17), w / 2, 28, "small", { "text-anchor": "middle", "font-size": 10 });
    } else if (["host", "bridge"].includes(item.kind)) {
      const name = item.kind === "host" ? "routing · services · policy" : item.name;
      put(name, 10, 17, item.kind === "host" ? "small" : "strong", { "font-size": 11 });
      if (item.kind === "bridge") put(item.label, w - 10, 17, "small", { "text-anchor": "end" });
    } else if (item.kind === "pod") {
      const held = this.fact(item, "policies");
      const room = Math.floor((w - (held ? 36 : 20)) / 7);
      const name = cut(item.name, room);
      const space = name.length + item.label.length + 2 <= room ? `${item.label}/` : "";
      group.append(s("text", { class: "strong", x: x + 10, y: y + 17 }, space && s("tspan", { class: "space" }, space), name));
      put(cut(this.fact(item, "addresses").split(",")[0] || item.label, 22), 10, 33, "small");
      if (held) group.append(s("path", { class: "shield", d: shield(x + w - 17, y + 8) }));
    } else {
      put(cut(item.name, 26), 11, 18, "strong");
      put(cut(item.label, 32), 11, 34, "small");
    }
    if (mark) put(mark, w - (item.kind === "pod" && this.fact(item, "policies") ? 32 : 17), 17, `mark ${item.state}`);
  }

  /** What stands for several: a closed node's pods, Services there is no room for. */
  more() {
    for (const [id, box] of Object.entries(this.places.boxes)) {
      if (id.startsWith("pods:")) {
        const node = id.slice(5);
        const inside = this.graph.items.filter((item) => item.node === node && item.kind === "pod");
        const bad = inside.filter((item) => item.state !== "ok").length;
        const text = plural(inside.length, "pod");
        const group = this.thing(id, "pods", box, `${text} of ${node}: show them`, bad ? "bad" : "ok");
        group.append(s("text", { class: "strong", x: box[0] + 11, y: box[1] + box[3] / 2 + 4 }, text));
        const tail = bad ? `✕ ${bad}` : "show";
        group.append(s("text", {
          class: bad ? "mark bad" : "small", x: box[0] + box[2] - 11, y: box[1] + box[3] / 2 + 4, "text-anchor": "end",
        }, tail));
      }
    }
    const rest = this.places.boxes["svc+"];
    if (rest) {
      const text = `${this.places.hidden_services} more Services`;
      const group = this.thing("svc+", "more", rest, `${text}: see the tables`, "ok");
      group.append(
        s("text", { class: "strong", x: rest[0] + 11, y: rest[1] + 18 }, text),
        s("text", { class: "small", x: rest[0] + 11, y: rest[1] + 34 }, "listed in the tables"),
      );
    }
  }

  headings() {
    const services = Object.entries(this.places.boxes).filter(([id]) => id.startsWith("svc"));
    if (!services.length) return;
    const [x, y] = services[0][1];
    this.layer.labels.append(s("text", { class: "small strong", x: x + 2, y: y - 11 }, "Services"));
  }

  d(path) {
    return path.curve ? curve(path.points) : line(path.points);
  }

  edge(edge) {
    const path = this.places.paths[edge.id];
    if (!path || edge.kind === "backs") return;
    const shown = edge.kind !== "tunnel" || this.places.arcs || edge.state !== "ok";
    const element = s("path", { class: `edge ${edge.kind}`, d: this.d(path), data: { state: edge.state, edge: edge.id } });
    if (!shown) element.setAttribute("visibility", "hidden");
    this.layer.edges.append(element);
    if (!edge.counter) return;
    const flow = s("path", { class: "flow", d: this.d(path), visibility: "hidden", data: { edge: edge.id } });
    const [x, y] = middle(path);
    const upright = Math.abs(path.points.at(-1)[0] - path.points[0][0]) < 2;
    const rate = s("text", { class: "rate", x: x + (upright ? 8 : 0), y: y + (upright ? 4 : -6), visibility: "hidden" });
    const drop = s("g", { class: "drop", visibility: "hidden" },
      s("rect", { height: 16, rx: 8 }), s("text", { "text-anchor": "middle" }));
    const inside = s("g", { class: edge.kind === "cable" ? "" : "in-node" }, rate);
    this.layer.flows.append(flow);
    this.layer.labels.append(inside, drop);
    this.live.set(edge.id, { flow, rate, drop, at: [x, y], edge });
  }

  /** Tunnels can be chosen, too, and say when they are broken. */
  arc(edge) {
    const path = this.places.paths[edge.id];
    if (!path || (!this.places.arcs && edge.state === "ok")) return;
    const [a, b] = [this.items.get(edge.a), this.items.get(edge.b)];
    const [x, y] = middle(path);
    const words = [`tunnel ${edge.name} of ${a?.node} and ${b?.node}`];
    if (edge.state !== "ok") words.push(`broken: ${edge.note}`);
    const group = this.thing(edge.id, "arc", [x - 13, y - 11, 26, 22], words.join(", "), edge.state, this.layer.labels);
    group.prepend(s("path", { class: "hit", d: this.d(path) }));
    if (edge.state !== "ok") {
      group.append(
        s("circle", { cx: x, cy: y, r: 9, fill: "var(--bad-bg)", stroke: "var(--bad)" }),
        s("text", { class: "mark bad", x, y: y + 4, "text-anchor": "middle" }, "✕"),
      );
    }
  }

  // ---- what is chosen

  /** chosen: {from, to, shown}; ids of items. */
  choose(chosen) {
    this.chosen = chosen || {};
    const { from, to, shown } = this.chosen;
    for (const [id, { element }] of this.things) {
      const stands = (item) => item && (item === id || this.places.inside[item] === id);
      element.classList.toggle("from", Boolean(stands(from)));
      element.classList.toggle("to", Boolean(stands(to)));
      element.setAttribute("aria-pressed", String(Boolean(stands(from) || stands(to) || stands(shown))));
    }
    this.layer.backs.replaceChildren();
    const marked = [from, to, shown].filter(Boolean);
    for (const edge of this.graph.edges) {
      const path = this.places.paths[edge.id];
      if (!path) continue;
      if (edge.kind === "backs" && (marked.includes(edge.a) || shown === edge.b)) {
        this.layer.backs.append(s("path", { class: "edge backs", d: this.d(path), data: { state: edge.state, edge: edge.id } }));
      }
      if (edge.kind === "tunnel" && !this.places.arcs) {
        const node = this.items.get(shown)?.node;
        const mine = node && [edge.a, edge.b].some((end) => this.items.get(end)?.node === node);
        this.edgeElement(edge.id)?.setAttribute("visibility", mine || edge.state !== "ok" ? "visible" : "hidden");
      }
    }
  }

  // ---- traffic

  traffic(rates) {
    if (!this.live) return;
    for (const { flow, rate, drop, at, edge } of this.live.values()) {
      const now = rates.edge(edge);
      const moving = now.total > MOVING;
      flow.setAttribute("visibility", moving ? "visible" : "hidden");
      if (moving) {
        flow.setAttribute("stroke-width", thick(now.total).toFixed(2));
        flow.setAttribute("class", `flow ${now.forward >= now.backward ? "forward" : "backward"}`);
      }
      flow.dataset.rate = String(Math.round(now.total));
      const written = now.total >= SHOWN && edge.kind !== "veth";
      rate.setAttribute("visibility", written ? "visible" : "hidden");
      if (written) rate.textContent = words(now.total);
      const lost = now.drops > 0;
      drop.setAttribute("visibility", lost ? "visible" : "hidden");
      if (lost) this.pill(drop, `✕ ${now.drops}`, this.dropAt(edge, at));
      if (edge.kind === "veth") this.podRate(edge, now);
    }
    this.denied(rates);
  }

  /** Drops of a pod's veth stand at the pod's corner, where it is clear whose they are. */
  dropAt(edge, at) {
    const box = edge.kind === "veth" ? this.things.get(edge.b)?.box : null;
    return box ? [box[0] + box[2] - 48, box[1]] : [at[0] - 24, at[1]];
  }

  pill(group, text, [x, y]) {
    const wide = text.length * 6.2 + 10;
    const [rect, label] = group.children;
    rect.setAttribute("x", x - wide / 2);
    rect.setAttribute("y", y - 8);
    rect.setAttribute("width", wide);
    label.setAttribute("x", x);
    label.setAttribute("y", y + 4);
    label.textContent = text;
  }

  podRate(edge, now) {
    const thing = this.things.get(edge.b);
    if (!thing) return;
    let text = thing.element.querySelector(".rate");
    if (now.total < SHOWN) {
      text?.remove();
      return;
    }
    if (!text) {
      const [x, y, w] = thing.box;
      text = s("text", { class: "rate", x: x + w - 8, y: y + 33, "text-anchor": "end", "font-size": 10 });
      thing.element.append(text);
    }
    text.textContent = words(now.total);
  }

  /** What policies have denied on each node, at its routing. */
  denied(rates) {
    for (const item of this.graph.items) {
      if (item.kind !== "node") continue;
      const found = rates.node(item.name);
      const at = this.things.get(`host:${item.name}`) || this.things.get(`pods:${item.name}`);
      if (!at || !found) continue;
      let group = at.element.querySelector(".drop");
      if (!found.denied) {
        group?.remove();
        continue;
      }
      if (!group) {
        group = s("g", { class: "drop" }, s("rect", { height: 16, rx: 8 }), s("text", { "text-anchor": "middle" }));
        at.element.append(group);
      }
      const text = `✕ ${found.denied} denied`;
      const [x, y, w, height] = at.box;
      this.pill(group, text, [x + w - 8 - (text.length * 6.2 + 10) / 2, y + height / 2]);
    }
  }

  // ---- traces

  /** trace: as /api/trace answers; null: none. side: "there" or "back"; fresh: just made. */
  way(trace, side, fresh = false) {
    this.layer?.ways.replaceChildren();
    this.layer?.badges.replaceChildren();
    for (const { element } of this.things?.values() || []) element.classList.remove("on-way");
    for (const element of this.layer?.edges.querySelectorAll(".used") || []) element.classList.remove("used");
    if (!trace || !this.layer) return;
    const there = trace.steps.slice(0, trace.hops.length);
    const back = trace.steps.slice(trace.hops.length);
    this.draws(there, "there", -2.5, side, fresh);
    this.draws(back, "back", 2.5, side, fresh);
    for (const step of trace.steps) {
      for (const id of [step.item, step.also]) this.things.get(this.standIn(id))?.element.classList.add("on-way");
      if (step.also.startsWith("tunnel:")) this.edgeElement(step.also)?.classList.add("used");
    }
    this.badges(side === "there" ? there : back, side, trace.fault);
    if (trace.fault) this.fault(trace);
  }

  edgeElement(id) {
    return this.layer.edges.querySelector(`[data-edge="${CSS.escape(id)}"]`);
  }

  standIn(id) {
    return this.places.boxes[id] ? id : this.places.inside[id] || "";
  }

  draws(steps, name, shift, side, fresh) {
    const points = [];
    for (const step of steps) {
      for (const [id, turned] of step.edges) {
        const path = this.places.paths[id];
        if (!path) continue;
        const part = turned ? [...path.points].reverse() : path.points;
        this.join(points, part[0]);
        points.push(...part);
      }
    }
    if (points.length < 2) return;
    const faint = side !== name ? " faint" : "";
    const move = `translate(${shift} ${name === "there" ? -1.5 : 1.5})`;
    const d = line(points);
    const draws = fresh && name === "there" ? { pathLength: 1 } : {};
    this.layer.ways.append(
      s("path", { class: `way halo${faint}`, d, transform: move }),
      s("path", { class: `way ${name}${faint}${draws.pathLength ? " fresh" : ""}`, d, transform: move, data: { way: name }, ...draws }),
    );
  }

  /** Two cables meet on the underlay: along its bars, around by its left side between two of them. */
  join(points, next) {
    const last = points.at(-1);
    if (!last) return;
    const rails = this.places.rails;
    const on = (point) => rails.find((rail) => Math.abs(rail[2] - point[1]) < RAIL);
    const [one, other] = [on(last), on(next)];
    if (one && other && one !== other) points.push([one[0], one[2]], [other[0], other[2]]);
  }

  badges(steps, side, fault) {
    const runs = [];
    for (const step of steps) {
      const at = this.standIn(step.item);
      if (!at) continue;
      if (runs.at(-1)?.at === at) runs.at(-1).hops.push(step.hop);
      else runs.push({ at, hops: [step.hop] });
    }
    const used = new Map();
    for (const run of runs) {
      const [x, y] = this.things.get(run.at)?.box || this.places.boxes[run.at];
      const first = run.hops[0] + 1;
      const last = run.hops.at(-1) + 1;
      const text = first === last ? String(first) : `${first}–${last}`;
      const wide = text.length * 6.6 + 11;
      const left = used.get(run.at) || 0;
      used.set(run.at, left + wide + 3);
      const wrong = fault && run.hops.includes(fault.hop);
      const group = s("g", { class: `badge ${side}${wrong ? " fault" : ""}`, data: { hops: run.hops.join(" "), at: run.at } });
      group.append(
        s("rect", { x: x - 6 + left, y: y - 9, width: wide, height: 17, rx: 8.5 }),
        s("text", { x: x - 6 + left + wide / 2, y: y + 3.5, "text-anchor": "middle" }, text),
      );
      this.layer.badges.append(group);
    }
  }

  fault(trace) {
    const { fault } = trace;
    const step = trace.steps.find((one) => one.hop === fault.hop) || trace.steps.at(-1);
    const id = this.standIn(step?.item || (fault.space ? `pod:${fault.space}` : `host:${fault.node}`));
    const box = this.things.get(id)?.box || this.places.boxes[id];
    if (!box) return;
    const text = `✕ ${fault.kind}`;
    const wide = text.length * 7 + 18;
    const inside = id.startsWith("host:"); // above it stands the node's name
    const x = Math.max(Math.min(box[0] + box[2] / 2 + (inside ? 10 : -wide / 2), this.places.width - wide), 0);
    const y = inside ? box[1] + box[3] + 1 : box[1] - 32;
    this.layer.badges.append(
      s("g", { class: "callout", data: { fault: fault.kind, at: id } },
        s("rect", { x, y, width: wide, height: 23, rx: 6 }),
        s("text", { x: x + wide / 2, y: y + 16, "text-anchor": "middle" }, text)),
    );
  }

  /** Point at one hop. */
  light(hop) {
    for (const badge of this.layer?.badges.querySelectorAll(".badge") || []) {
      badge.classList.toggle("lit", hop !== null && badge.dataset.hops.split(" ").includes(String(hop)));
    }
  }

  // ---- size

  fit() {
    if (!this.view) {
      const { width, height } = this.places;
      this.svg.setAttribute("viewBox", `-10 -8 ${width + 20} ${height + 12}`);
    } else this.svg.setAttribute("viewBox", this.view.join(" "));
  }

  zoom(factor) {
    if (!this.places) return;
    if (!factor) this.view = null;
    else {
      const [x, y, w, height] = this.svg.getAttribute("viewBox").split(" ").map(Number);
      const [wide, high] = [w / factor, height / factor];
      this.view = [x + (w - wide) / 2, y + (height - high) / 2, wide, high];
    }
    this.fit();
  }

  // ---- keyboard and pointer

  wire() {
    const { svg } = this;
    svg.addEventListener("click", (event) => {
      const thing = event.target.closest?.(".thing");
      if (thing && !this.dragged) {
        this.rove(thing.dataset.id);
        this.act(thing.dataset.id, event);
      }
    });
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("focusin", (event) => {
      const thing = event.target.closest?.(".thing");
      if (thing) this.rove(thing.dataset.id, false);
    });
    let start = null;
    svg.addEventListener("pointerdown", (event) => {
      this.dragged = false;
      if (event.button !== 0 || !svg.hasAttribute("viewBox")) return;
      start = { x: event.clientX, y: event.clientY, view: svg.getAttribute("viewBox").split(" ").map(Number) };
    });
    window.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [dx, dy] = [event.clientX - start.x, event.clientY - start.y];
      if (!this.dragged && Math.hypot(dx, dy) < 5) return;
      this.dragged = true;
      svg.classList.add("dragging");
      const scale = 1 / (svg.getScreenCTM()?.a || 1);
      const [x, y, w, height] = start.view;
      this.view = [x - dx * scale, y - dy * scale, w, height];
      this.fit();
    });
    window.addEventListener("pointerup", () => {
      start = null;
      svg.classList.remove("dragging");
    });
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
    }, { passive: false });
  }

  rove(id, focus = true) {
    if (!this.things?.has(id)) return;
    this.things.get(this.roving)?.element.setAttribute("tabindex", "-1");
    this.roving = id;
    const { element } = this.things.get(id);
    element.setAttribute("tabindex", "0");
    if (focus) element.focus();
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const thing = event.target.closest?.(".thing");
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in ways) this.step(ways[event.key]);
    else if (["Enter", " "].includes(event.key) && thing) this.act(thing.dataset.id, event);
    else if (event.key === "Home") this.rove(this.first());
    else if (event.key === "+") this.zoom(1.2);
    else if (event.key === "-") this.zoom(1 / 1.2);
    else if (event.key === "0") this.zoom(0);
    else return;
    event.preventDefault();
  }

  /** To the nearest thing in a direction: what lies straight ahead is nearer than what lies aside. */
  step([dx, dy]) {
    const here = this.things.get(this.roving)?.box;
    if (!here) return;
    const centre = ([x, y, w, height]) => [x + w / 2, y + height / 2];
    const [x, y] = centre(here);
    let best = Infinity;
    let to = "";
    for (const [id, { box }] of this.things) {
      const [cx, cy] = centre(box);
      const ahead = (cx - x) * dx + (cy - y) * dy;
      const aside = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
      if (ahead < 4 || id === this.roving) continue;
      const far = ahead + aside * 2.2;
      if (far < best) [best, to] = [far, id];
    }
    if (to) this.rove(to);
  }
}

const shield = (x, y) => `M${x} ${y}l5 -2l5 2v4c0 3 -2.4 5 -5 6.4c-2.6 -1.4 -5 -3.4 -5 -6.4z`;
