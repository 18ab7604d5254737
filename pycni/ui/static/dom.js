// Making elements: no markup is ever parsed from text, so nothing that pods are called can become any.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(4)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child);
  }
  return element;
}

/** An HTML element: h("p", {class: "note"}, "text", child, ...). */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

/** Text cut to about so many characters. */
export const cut = (text, room) => (text.length <= room ? text : `${text.slice(0, Math.max(room - 1, 1))}…`);

export const plural = (count, one, many) => `${count} ${count === 1 ? one : many || `${one}s`}`;
