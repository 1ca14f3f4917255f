// Setting a node's field as a user would, in the classic canvas as in Vue's nodes.

import { app } from "../../../scripts/app.js";
import { widgetOf } from "./graph.js";

/** Sets a field and tells whoever listens to it. */
export function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

/** The graph was changed by other means than the mouse: for undo, for saving, for auto-queue. */
export function noteChange() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}
