// Texts in the language that the page is set to.

import { app } from "../../../scripts/app.js";
import { SENT, inLanguage } from "./words.js";

const language = () => app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";

/** @type {(strings: readonly string[], ...values: any[]) => string} */
export function t(strings, ...values) {
  return inLanguage(language(), strings, values);
}

/** A text that the server sends, such as a family's title, where words.js has it in the language. */
export function translated(text) {
  return SENT[language()]?.[text] ?? text;
}

/** Why the server has no numbers now, in the page's language where it is one of the known reasons. */
export function whyNotNow({ status, reason }) {
  if (status === "busy") return t`ComfyUI is running a graph; its text encoder is not asked now.`;
  if (status === "no_encoder") return t`Run the graph once: the tokens come from its CLIP.`;
  if (status === "gone") return t`ComfyUI keeps no text encoder after a run (--cache-none, or its memory was freed): start it without --cache-none, or run again.`;
  if (status === "no_concept") return t`Run the graph once: a concept is made in it, in no file.`;
  return reason;
}
