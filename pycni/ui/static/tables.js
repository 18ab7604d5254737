// The same as the map, as tables: for screen readers, for looking up, for what the map has no room for.

import { h } from "./dom.js";
import { words } from "./rates.js";

const NUMBERS = ["Pods", "In", "Out", "Dropped"];
const state = (one) => one.state === "ok"
  ? h("td", {}, "ok")
  : h("td", { class: `long is-${one.state}` }, `${one.state === "bad" ? "✕" : "▲"} ${one.note}`);
const fact = (item, name) => item.facts.find((one) => one[0] === name && one[1])?.[1] || "";

function table(name, heads, rows) {
  if (!rows.length) return null;
  const id = `table-${name.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return [
    h("h2", { id }, name),
    h("div", { class: "wide", role: "region", tabindex: "0", "aria-labelledby": id }, h("table", { "aria-labelledby": id },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: NUMBERS.includes(head) && "num" }, head)))),
      h("tbody", {}, rows))),
  ];
}

export class Tables {
  /** on: {from(id), to(id), show(id)} */
  constructor(element, on) {
    this.element = element;
    this.on = on;
    this.live = [];
  }

  draw(graph) {
    this.live = [];
    const of = (kind) => graph.items.filter((item) => item.kind === kind);
    const head = (item, text) => h("th", { scope: "row" },
      h("button", { type: "button", class: "link", onclick: () => this.on.show(item.id) }, text));
    const rate = (edge, forward) => {
      const cell = h("td", { class: "num" }, "");
      if (edge?.counter) this.live.push({ edge, forward, cell });
      return cell;
    };
    const buttons = (item, source = true) => h("td", {},
      source && h("button", { type: "button", "aria-label": `trace from ${item.name}`, onclick: () => this.on.from(item.id) }, "from"),
      h("button", { type: "button", "aria-label": `trace to ${item.name}`, onclick: () => this.on.to(item.id) }, "to"));
    const into = new Map(graph.edges.filter((edge) => edge.kind !== "backs" && edge.kind !== "tunnel").map((edge) => [edge.b, edge]));
    const items = new Map(graph.items.map((item) => [item.id, item]));
    const held = document.activeElement && this.element.contains(document.activeElement);
    if (held) return this.traffic(this.rates);
    this.element.replaceChildren(...[
      table("Nodes", ["Node", "Addresses", "Pod network", "Backend", "Pods", "State", "Trace"], of("node").map((item) =>
        h("tr", {}, head(item, item.name), h("td", {}, fact(item, "addresses")), h("td", {}, item.label),
          h("td", {}, fact(item, "backend")), h("td", { class: "num" }, fact(item, "pods")), state(item), buttons(item)))),
      table("Pods", ["Pod", "Node", "Addresses", "Policies", "In", "Out", "Dropped", "State", "Trace"], of("pod").map((item) => {
        const edge = into.get(item.id);
        return h("tr", {}, head(item, item.id.slice(4)), h("td", {}, item.node), h("td", {}, fact(item, "addresses")),
          h("td", {}, fact(item, "policies")), rate(edge, "forward"), rate(edge, "backward"), rate(edge, "drops"), state(item), buttons(item));
      })),
      table("Services", ["Service", "Type", "Addresses", "Ports", "Endpoints", "State", "Trace"], of("service").map((item) =>
        h("tr", {}, head(item, item.id.slice(4)), h("td", {}, fact(item, "type")), h("td", {}, fact(item, "addresses")),
          h("td", {}, fact(item, "ports")), h("td", {}, fact(item, "endpoints")), state(item), buttons(item, false)))),
      table("Tunnels", ["Between", "And", "Device", "State"], graph.edges.filter((edge) => edge.kind === "tunnel").map((edge) =>
        h("tr", {}, h("th", { scope: "row" }, items.get(edge.a)?.node || edge.a), h("td", {}, items.get(edge.b)?.node || edge.b), h("td", {}, edge.name), state(edge)))),
      table("Outside", ["Who", "Address", "Sessions", "State"], of("peer").map((item) =>
        h("tr", {}, head(item, item.name), h("td", {}, fact(item, "address")), h("td", { class: "long" }, item.label), state(item)))),
      table("Interfaces", ["Interface", "Node", "Kind", "In", "Out", "Dropped", "State"],
        ["uplink", "tunnel", "bridge"].flatMap((kind) => of(kind)).map((item) => {
          const edge = into.get(item.id);
          const turned = edge?.forward === "rx";
          return h("tr", {}, head(item, item.name), h("td", {}, item.node), h("td", {}, `${item.kind} ${item.label}`),
            rate(edge, turned ? "forward" : "backward"), rate(edge, turned ? "backward" : "forward"), rate(edge, "drops"), state(item));
        })),
    ].flat().filter(Boolean));
    this.traffic(this.rates);
  }

  traffic(rates) {
    this.rates = rates;
    if (!rates) return;
    for (const { edge, forward, cell } of this.live) {
      const now = rates.edge(edge);
      const text = forward === "drops" ? (now.drops ? `✕ ${now.drops}` : "0") : words(now[forward]);
      if (cell.textContent !== text) cell.textContent = text;
      cell.classList.toggle("is-bad", forward === "drops" && now.drops > 0);
    }
  }
}
