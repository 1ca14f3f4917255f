// Setting a node's field as a user would, in the classic canvas as in Vue's nodes.

import { app } from "../../../scripts/app.js";
import { widgetOf } from "./node_paths.js";

/** Sets a field and tells whoever listens to it. */
export function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

let waiting = false;

/**
 * A slider moves. When it is let go the change is noted: a slider of Vue's nodes keeps the mouse's
 * events to itself, so ComfyUI would see it at the next click only.
 */
export function noteOnRelease() {
  if (waiting) return;
  waiting = true;
  addEventListener(
    "pointerup",
    () => {
      waiting = false;
      // After whoever else listens: the last value is then in the node.
      setTimeout(noteChange);
    },
    { once: true, capture: true },
  );
}

/** The graph was changed by other means than the mouse: for undo, for saving, for auto-queue. */
export function noteChange() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}
