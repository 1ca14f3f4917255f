// Elements in one line. Text goes in as text, never as HTML: names come from files.

/**
 * @param {string} tag
 * @param {Record<string, string>} [attributes] `text` is the element's text
 * @param {Node[]} [children]
 * @returns {any}
 */
export function make(tag, { text, ...attributes } = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}
