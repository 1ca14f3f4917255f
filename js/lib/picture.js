// A concept's picture, or the first letter of its name where it has none: the browser's own sign for a
// picture that is broken is never seen.

import { make } from "./make.js";

/**
 * @param {string} address "" where there is no picture
 * @param {string} name of the concept
 * @param {string} [alt] what the picture is called; "" where its name is beside it
 */
export function picture(address, name, alt = "") {
  const frame = make("div", { class: "perfusion-picture" });
  fill(frame, address, name, alt);
  return frame;
}

/** Puts another picture into a frame. */
export function fill(frame, address, name, alt = "") {
  const letter = make("span", { text: [...name][0] ?? "", "aria-hidden": "true" });
  frame.replaceChildren(letter);
  if (!address) return;
  const image = make("img", { src: address, alt, loading: "lazy" });
  // A file that is damaged or has gone: the letter again.
  image.addEventListener("error", () => {
    if (image.parentNode === frame) frame.replaceChildren(letter);
  });
  frame.replaceChildren(image);
}
