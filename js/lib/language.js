// Texts in the language that the page is set to.

import { app } from "../../../scripts/app.js";
import { inLanguage } from "./words.js";

/** @type {(strings: readonly string[], ...values: any[]) => string} */
export function t(strings, ...values) {
  return inLanguage(app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en", strings, values);
}
