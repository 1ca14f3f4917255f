// The gate: how far a prompt token turns into a concept. The same formula as in the model's edit
// (perfusion_core/method/edit.py), so that what is drawn is what is sampled.

/**
 * @typedef {object} Sliders
 * @property {number} bias similarity at which the gate is half open
 * @property {number} temperature softness of the gate, above 0
 * @property {number} strength what the whole edit is multiplied by
 */

/**
 * The gate of a token, 0 to 1.
 * @param {number} similarity 1 at the concept's own word
 * @param {Sliders} sliders
 */
export function gate(similarity, sliders) {
  return 1 / (1 + Math.exp((sliders.bias - similarity) / sliders.temperature));
}

/**
 * How much of the concept a token gets: strength times gate.
 * @param {number} similarity
 * @param {Sliders} sliders
 */
export function weight(similarity, sliders) {
  return sliders.strength * gate(similarity, sliders);
}

/**
 * The weight over a range of similarities, as x, y, x, y ...
 * @param {Sliders} sliders
 * @param {number} low
 * @param {number} high
 * @param {number} count of points, at least 2
 */
export function curve(sliders, low, high, count) {
  const points = new Float64Array(2 * count);
  for (let i = 0; i < count; i++) {
    const similarity = low + ((high - low) * i) / (count - 1);
    points[2 * i] = similarity;
    points[2 * i + 1] = weight(similarity, sliders);
  }
  return points;
}

/** A number from a slider or a connection, or the default where it is none. */
export function finite(value, otherwise) {
  const number = typeof value === "string" && value.trim() === "" ? NaN : Number(value);
  return Number.isFinite(number) ? number : otherwise;
}
