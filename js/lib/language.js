// Texts in the language that the page is set to.

import { app } from "../../../scripts/app.js";
import { inLanguage } from "./words.js";

/** @type {(strings: readonly string[], ...values: any[]) => string} */
export function t(strings, ...values) {
  return inLanguage(app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en", strings, values);
}

/** What a family is called: its model's name in every language, but for that of the demo. */
export function familyTitle(family, title) {
  return family === "emoji" ? t`the emoji world of the demo` : title;
}

/** Why the server has no numbers now, in the page's language where it is one of the known reasons. */
export function whyNotNow({ status, reason }) {
  if (status === "busy") return t`ComfyUI is running a graph; its text encoder is not asked now.`;
  if (status === "no_encoder") return t`Run the graph once: the tokens come from its CLIP.`;
  if (status === "gone") return t`ComfyUI keeps no text encoder after a run (--cache-none, or its memory was freed): start it without --cache-none, or run again.`;
  if (status === "no_concept") return t`Run the graph once: a concept is made in it, in no file.`;
  return reason;
}
