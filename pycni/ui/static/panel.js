// The panel beside the map: what is known of one thing, what policies hold for a pod, and traces hop by hop.

import { h, plural } from "./dom.js";

const NAMES = {
  node: "node", host: "routing, services and policies of a node", uplink: "uplink", tunnel: "tunnel device",
  bridge: "bridge", pod: "pod", service: "Service", peer: "outside the cluster", underlay: "the network between nodes",
};
const SIGNS = { dropped: "✕", refused: "✕", translated: "⇄", encapsulated: "▷", decapsulated: "◁", delivered: "●" };

/** "tcp 10.1.0.2:40000 > 10.1.1.3:80" */
export function packet(flow) {
  const end = (address, port) => {
    if (!port || flow.protocol === "icmp") return address;
    return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
  };
  return `${flow.protocol} ${end(flow.source, flow.source_port)} > ${end(flow.destination, flow.destination_port)}`;
}

export class Panel {
  /** on: {from(id), to(id), toggle(node), hop(index), side(name), explain(), show(id)} */
  constructor(element, on) {
    this.element = element;
    this.on = on;
  }

  put(...children) {
    this.element.replaceChildren(...children.flat().filter(Boolean));
    this.element.scrollTop = 0;
  }

  tabs(active, trace) {
    if (!trace) return null;
    const tab = (name, text) =>
      h("button", { type: "button", id: `tab-${name}`, "aria-pressed": String(active === name), onclick: () => this.on.tab(name) }, text);
    return h("div", { class: "switch tabs", role: "group", "aria-label": "What to show" },
      tab("trace", "Trace"), tab("details", "Details"));
  }

  welcome(graph, trace) {
    const count = (kind) => graph.items.filter((item) => item.kind === kind).length;
    const wrong = graph.items.concat(graph.edges).filter((one) => one.state !== "ok");
    this.put(
      this.tabs("details", trace),
      h("h2", {}, "Overview"),
      h("p", { class: "kind" }, `${plural(count("node"), "node")}, ${plural(count("pod"), "pod")}, ${plural(count("service"), "Service")}`),
      graph.trouble && h("p", { class: "note" }, h("b", {}, "Less is known than should be"), graph.trouble),
      wrong.length
        ? [h("h3", {}, "Not as wanted"), h("ul", { class: "policies" }, wrong.map((one) => this.wrong(one)))]
        : h("p", { class: "note ok" }, "Everything found is as it is wanted."),
      h("h3", {}, "How"),
      h("p", {}, "Choose a pod, then a second pod or a Service: a probe is sent and its way drawn, hop by hop. ",
        "Choose anything else to see what is known of it."),
      h("div", { id: "denials" }),
    );
  }

  wrong(one) {
    const place = "b" in one ? one.name || one.kind : `${NAMES[one.kind] ? one.kind : ""} ${one.name}`;
    const target = "b" in one ? (one.kind === "tunnel" ? one.id : one.b) : one.id;
    return h("li", {},
      h("button", { type: "button", class: "link", onclick: () => this.on.show(target) },
        `${one.state === "bad" ? "✕" : "▲"} ${place}${one.node && one.kind !== "node" ? ` on ${one.node}` : ""}`),
      h("div", {}, one.note));
  }

  denials(rows) {
    const box = document.getElementById("denials");
    if (!box || !rows.length) return;
    box.replaceChildren(
      h("h3", {}, "Denied just now"),
      h("ol", { class: "denials", reversed: true }, rows.slice(0, 12).map((row) =>
        h("li", {}, `${row.source_pod || row.source} → ${row.destination_pod || row.destination}`,
          row.port ? `:${row.port} ` : " ", h("span", { class: "kind" }, `${row.protocol}, ${row.direction}, ${row.policy}`)))),
    );
  }

  // ---- one thing

  item(item, graph, live, trace) {
    const ends = ["pod", "node", "service"].includes(item.kind);
    const full = ["pod", "service"].includes(item.kind) ? item.id.slice(4) : item.name;
    const button = (text, run) => h("button", { type: "button", onclick: run }, text);
    const backs = graph.edges.filter((edge) => edge.kind === "backs" && (edge.a === item.id || edge.b === item.id));
    this.put(
      this.tabs("details", trace),
      h("p", { class: "kind" }, NAMES[item.kind] || item.kind),
      h("h2", {}, full),
      item.state !== "ok" && h("p", { class: `note ${item.state}` }, h("b", {}, item.state === "bad" ? "✕ Broken" : "▲ Not as wanted"), item.note),
      ends && h("div", { class: "row" },
        item.kind !== "service" && button("Trace from here", () => this.on.from(item.id)),
        button("Trace to here", () => this.on.to(item.id)),
        item.kind === "node" && button("Show or hide its pods", () => this.on.toggle(item.name))),
      this.facts(item.facts, live),
      backs.length > 0 && [
        h("h3", {}, item.kind === "service" ? "Endpoints" : "Behind these Services"),
        h("ul", { class: "policies" }, backs.map((edge) => {
          const other = edge.a === item.id ? edge.b : edge.a;
          return h("li", {}, h("button", { type: "button", class: "link", onclick: () => this.on.show(other) }, other.slice(4)),
            edge.note && ` (${edge.note})`);
        })),
      ],
      item.kind === "pod" && h("div", { id: "policy" }, h("h3", {}, "Policies"), h("p", { class: "kind" }, "asking ...")),
    );
  }

  tunnel(edge, items, trace) {
    const [a, b] = [items.get(edge.a), items.get(edge.b)];
    this.put(
      this.tabs("details", trace),
      h("p", { class: "kind" }, "tunnel"),
      h("h2", {}, `${a.node} ↔ ${b.node}`),
      edge.state !== "ok" && h("p", { class: "note bad" }, h("b", {}, "✕ Broken"), edge.note),
      this.facts([["device", edge.name], ["kind", a.label], [a.node, a.facts.find((fact) => fact[0] === "MAC")?.[1] || ""],
        [b.node, b.facts.find((fact) => fact[0] === "MAC")?.[1] || ""]], null),
    );
  }

  facts(facts, live) {
    const rows = [...facts.filter((fact) => fact[1])];
    if (live) rows.push(...live);
    return h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  /** What holds for a pod, as /api/policy answers. */
  policy(found) {
    const box = document.getElementById("policy");
    if (!box) return;
    const { rules, notes, counted } = found;
    const side = (one) => [
      h("h3", {}, `Policies: ${one.direction}`),
      h("p", {}, "What no rule is about is ", h("span", { class: `verdict ${one.otherwise}` }, one.otherwise),
        one.closed && " - closed: this node does not know the pod yet"),
      one.policies.length > 0 && h("ul", { class: "policies" }, one.policies.map((policy) => this.oneOf(policy, one.direction, counted))),
    ];
    box.replaceChildren(...[
      rules.exempt && h("p", { class: "note" }, rules.exempt),
      rules.sides.map(side),
      rules.planes.length > 0 && h("p", { class: "kind" }, `enforced by ${rules.planes.join(", ")} on ${rules.node}`),
      [rules.trouble, ...rules.notes, ...notes].filter(Boolean).map((text) => h("p", { class: "note" }, text)),
    ].flat(3).filter(Boolean));
  }

  oneOf(policy, direction, counted) {
    const rule = (one) => {
      const peers = one.peers.length ? one.peers.map((peer) => peer.text + (peer.pods >= 0 ? ` (${plural(peer.pods, "pod")})` : "")).join("; ") : "everybody";
      const ports = one.ports.length ? one.ports.join(", ") : "everything";
      return h("li", {}, `${direction}[${one.number}]${one.name ? ` ${one.name}` : ""}: ${one.action} ${direction === "ingress" ? "from" : "to"} ${peers}, ${ports}`,
        one.problem && h("p", { class: "note bad" }, one.problem));
    };
    return h("li", {}, h("b", {}, policy.key), ` (${policy.kind}, ${policy.selects})`,
      counted && policy.denied.packets > 0 && [" ", h("span", { class: "verdict denied" }, `✕ ${plural(policy.denied.packets, "packet")} denied`)],
      policy.rules.length ? h("ul", {}, policy.rules.map(rule)) : h("p", {}, "no rule: nobody is let in"));
  }

  // ---- a trace

  busy(words) {
    this.put(h("h2", {}, words), h("p", { class: "kind", role: "status" }, "tracing: a probe is sent and watched at every interface ..."));
  }

  trace(trace, side, steps) {
    const { fault } = trace;
    const trip = trace.round_trip_us === null ? "" : `, round trip ${Math.round(trace.round_trip_us)} µs`;
    const way = (name, text, count) => h("button", {
      type: "button", id: `side-${name}`, "aria-pressed": String(side === name), disabled: count === 0, onclick: () => this.on.side(name),
    }, `${text} (${count})`);
    this.put(
      this.tabs("trace", trace),
      h("p", { class: "kind" }, "trace"),
      h("h2", {}, trace.question.split(": ")[0].replace(" to ", " → ")),
      fault
        ? h("div", { class: "note bad", id: "fault", data: { kind: fault.kind } },
          h("b", {}, `✕ ${fault.kind} at ${[fault.node, fault.space].filter(Boolean).join(", ")}, ${fault.component}`),
          fault.cause, fault.command && this.command(fault))
        : h("p", { class: "note ok", id: "arrived" }, h("b", {}, "● It arrives and its answer comes back"), `${plural(trace.hops.length + trace.back.length, "hop")}${trip}`),
      trace.suspicions.map((one) => h("p", { class: "note" }, h("b", {}, `▲ Beside that, on ${one.node}`), one.cause)),
      h("div", { class: "row" }, h("div", { class: "switch", role: "group", "aria-label": "Direction" },
        way("there", "There", trace.hops.length), way("back", "Back", trace.back.length))),
      this.hops(side === "there" ? trace.hops : trace.back, side, side === "there" ? 0 : trace.hops.length, fault, steps),
      h("div", { id: "explain" }, h("div", { class: "row" },
        h("button", { type: "button", id: "why", onclick: () => this.on.explain() }, "What policies say about it"))),
      h("p", { class: "kind" }, `predicted in ${trace.predicted_ms.toFixed(0)} ms, all in ${trace.took_ms.toFixed(0)} ms`),
    );
  }

  command(fault) {
    const button = h("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(fault.command);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Cannot copy";
      }
    });
    return h("div", { class: "cmd" }, h("code", { title: `on ${fault.node}` }, fault.command), button);
  }

  hops(hops, side, start, fault, steps) {
    const rows = [];
    let place = null;
    let flow = "";
    hops.forEach((hop, at) => {
      const index = start + at;
      const where = hop.space ? `${hop.node}, pod ${hop.space}` : hop.node;
      if (where !== place) {
        place = where;
        rows.push(h("li", { class: "place" }, where));
      }
      const now = packet(hop.packet);
      if (now !== flow) {
        flow = now;
        rows.push(h("li", { class: "packet mono" }, now));
      }
      const wrong = fault && fault.hop === index;
      const size = hop.mtu ? `MTU ${hop.mtu}${hop.overhead ? ` (+${hop.overhead})` : ""}` : "";
      rows.push(h("li", {}, h("button", {
        type: "button", class: `hop ${side}${wrong ? " fault" : ""}`, data: { hop: index, item: steps[index]?.item || "" },
        "aria-label": [`hop ${index + 1}`, where, hop.component, hop.interface, hop.action, hop.detail, hop.reason,
          wrong ? "here is the fault" : ""].filter(Boolean).join(", "),
        onclick: () => this.on.hop(index), onfocus: () => this.on.light(index), onmouseenter: () => this.on.light(index),
      },
      h("span", { class: "no" }, String(index + 1)),
      h("span", { class: "what" }, h("b", {}, hop.component), ` ${hop.interface} ${SIGNS[hop.action] || ""} ${hop.action}`,
        h("span", { class: "more" }, [hop.detail, hop.reason && `— ${hop.reason}`, size].filter(Boolean).join("  ")),
        hop.seen?.said && h("span", { class: "more said" }, hop.seen.said)),
      h("span", { class: "us" }, hop.seen ? `+${Math.round(hop.seen.after_us)} µs` : ""))));
    });
    return h("ol", { class: "hops", "aria-label": `hops, ${side}` }, rows);
  }

  /** As /api/explain answers. */
  explanation(found) {
    const box = document.getElementById("explain");
    if (!box) return;
    const side = (one) => h("li", {}, h("span", { class: `verdict ${one.allowed ? "allowed" : "denied"}` }, one.allowed ? "allowed" : "denied"),
      ` ${one.direction}: ${one.why}`, one.node && h("span", { class: "kind" }, ` (judged on ${one.node})`));
    box.replaceChildren(
      h("h3", {}, "What policies say"),
      ...found.connections.map(({ connection, differences, by_node: nodes, not_asked: absent }) => h("div", {},
        h("p", {}, `${connection.source.pod || connection.source.address} → ${connection.destination.pod || connection.destination.address}, ${connection.protocol}${connection.port ? ` port ${connection.port}` : ""}: `,
          h("span", { class: `verdict ${connection.allowed ? "allowed" : "denied"}` }, connection.allowed ? "allowed" : "denied")),
        h("ul", { class: "policies" }, side(connection.egress), side(connection.ingress)),
        Object.keys(nodes).length > 0 && !differences.length && h("p", { class: "kind" }, `the kernels of ${Object.keys(nodes).join(" and ")} agree`),
        absent.length > 0 && h("p", { class: "kind" }, `did not answer: ${absent.join(", ")}`),
        differences.map((text) => h("p", { class: "note bad" }, text)))),
    );
  }

  failed(where, text) {
    const box = where ? document.getElementById(where) : null;
    const note = h("p", { class: "note bad" }, h("b", {}, "✕ That cannot be answered"), text);
    if (box) box.replaceChildren(note);
    else this.put(note);
  }
}
