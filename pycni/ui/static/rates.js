// From raw counters to rates. Counters are of devices as the node sees them: [bytes in, packets in, drops in, bytes out,
// packets out, drops out].

const UNITS = ["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"];
const SMOOTH = 0.55;
const RECENT_MS = 6000;

/** "1.2 Mb/s": bits, powers of a thousand. */
export function words(bits) {
  let unit = 0;
  let value = bits;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 99.5 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export class Rates {
  constructor() {
    this.last = null;
    this.devices = new Map(); // key -> {rx, tx (bits/s), rxp, txp (packets/s), drops (since watching), recent}
    this.nodes = new Map(); // node -> {denied (in all), rate, since}
    this.pods = new Map(); // pod item -> {count, recent}
    this.silent = {};
  }

  take(counters) {
    const before = this.last;
    this.last = counters;
    this.silent = counters.silent || {};
    const now = performance.now();
    const seconds = before ? (counters.at_ns - before.at_ns) / 1e9 : 0;
    for (const [pod, count] of Object.entries(counters.drops || {})) {
      const held = this.pods.get(pod);
      if (!held || held.count !== count) this.pods.set(pod, { count, recent: now });
    }
    for (const [node, denied] of Object.entries(counters.denied || {})) {
      const held = this.nodes.get(node);
      const grown = held ? Math.max(denied - held.denied, 0) : 0;
      this.nodes.set(node, { denied, recent: grown ? now : held?.recent ?? -Infinity, grown });
    }
    if (!before || seconds <= 0) return;
    for (const [key, is] of Object.entries(counters.devices)) {
      const was = before.devices[key];
      if (!was || is[0] < was[0] || is[3] < was[3]) continue; // new, or made anew
      const held = this.devices.get(key) || { rx: 0, tx: 0, rxp: 0, txp: 0, drops: 0, recent: -Infinity };
      const smooth = (old, grown) => {
        const fresh = grown / seconds;
        return old > 0 ? old + (fresh - old) * SMOOTH : fresh;
      };
      const dropped = Math.max(is[2] - was[2], 0) + Math.max(is[5] - was[5], 0);
      this.devices.set(key, {
        rx: smooth(held.rx, (is[0] - was[0]) * 8),
        tx: smooth(held.tx, (is[3] - was[3]) * 8),
        rxp: smooth(held.rxp, is[1] - was[1]),
        txp: smooth(held.txp, is[4] - was[4]),
        drops: held.drops + dropped,
        recent: dropped ? now : held.recent,
      });
    }
    for (const key of this.devices.keys()) if (!(key in counters.devices)) this.devices.delete(key);
  }

  /** Of an edge: bits/s from a to b and back, dropped packets since this page is open, whether any just now. */
  edge(edge) {
    const found = edge.counter ? this.devices.get(edge.counter) : null;
    const pod = edge.kind === "veth" ? this.pods.get(edge.b) : null;
    const now = performance.now();
    const forward = found ? (edge.forward === "tx" ? found.tx : found.rx) : 0;
    const backward = found ? (edge.forward === "tx" ? found.rx : found.tx) : 0;
    const recent = [found, pod].some((one) => one && now - one.recent < RECENT_MS);
    return { forward, backward, total: forward + backward, drops: (found?.drops || 0) + (pod?.count || 0), recent };
  }

  node(name) {
    const found = this.nodes.get(name);
    return found ? { denied: found.denied, recent: performance.now() - found.recent < RECENT_MS } : null;
  }
}
