// An HTML element on a node (a DOM widget), on the classic canvas as in Vue's nodes.

import { app } from "../../../scripts/app.js";

const MARGIN = 6; // around it, in the classic canvas

/**
 * Puts an element below a node's fields. It is no field: nothing of it is saved or sent.
 * @param {any} node
 * @param {string} name
 * @param {HTMLElement} root
 * @param {{least: () => number, most?: () => number}} height in pixels; without most it is always
 *   the least
 */
export function addElement(node, name, root, { least, most }) {
  root.dataset.perfusion = name;
  // The graph zooms as it does beside the element; Vue's nodes see to that themselves.
  root.addEventListener("wheel", onWheel, { passive: true });
  const widget = node.addDOMWidget(name, `perfusion_${name}`, root, {
    serialize: false,
    margin: MARGIN,
    getMinHeight: () => least() + 2 * MARGIN,
    getMaxHeight: () => (most ?? least)() + 2 * MARGIN,
  });
  widget.serialize = false;
  // As wide as its node, always: the frontend's side panel draws the parts of the node that is selected,
  // and would leave its own width on them.
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true });
  if (!most) {
    // Else Vue's nodes give it its part of what room they have to spare, whatever its most is.
    widget.computeLayoutSize = undefined;
    widget.computeSize = () => [0, least() + 2 * MARGIN];
  }
  return widget;
}

function onWheel(event) {
  if (!window.LiteGraph?.vueNodesMode) app.canvas?.processMouseWheel?.(event);
}

const WIDTH = 290; // what an element, and a node's title beside its badge, is readable in

/**
 * Makes a node as high as its elements need; its width stays, unless that is too narrow for them.
 * @param {any} node
 * @param {boolean} shrink whether it may get lower, too
 */
export function fitNode(node, shrink) {
  const [width, height] = node.size;
  const needed = node.computeSize()[1];
  node.setSize([Math.max(width, WIDTH), shrink ? needed : Math.max(height, needed)]);
  node.setDirtyCanvas?.(true, true);
}
