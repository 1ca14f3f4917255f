// Where everything of a gate plot is: plain numbers, no browser.

import { curve, gate, weight } from "./gate.js";
import { inEnglish } from "./words.js";

/**
 * @typedef {import("./gate.js").Sliders} Sliders
 *
 * @typedef {object} Series one concept in the plot
 * @property {string} name its placeholder
 * @property {Sliders} sliders
 * @property {number[]} similarities one a token; empty while unknown
 *
 * @typedef {object} Point one token on one concept's curve
 * @property {number} series
 * @property {number} token
 * @property {number} x
 * @property {number} y
 * @property {number} similarity
 * @property {number} gate
 * @property {number} weight
 *
 * @typedef {object} Label
 * @property {number} series
 * @property {number} token
 * @property {string} text
 * @property {number} x of its middle
 * @property {number} y of its baseline
 *
 * @typedef {object} Chart
 * @property {number} left
 * @property {number} top
 * @property {number} right
 * @property {number} bottom
 * @property {{value: number, x: number}[]} columns lines at similarities
 * @property {{value: number, y: number}[]} rows lines at weights
 * @property {Float64Array[]} curves x, y, x, y ... one a series
 * @property {number[]} biases x of each series' bias
 * @property {Point[]} points
 * @property {Label[]} labels
 */

/** Similarities that there is always room for; the same as in the Gate Inspector's picture. */
export const LOW = -0.25;
export const HIGH = 1.25;
/** What lies further out is drawn at the edge. */
const LOWEST = -1;
const HIGHEST = 2;

const CURVE_POINTS = 120;
// Room for the numbers and the names of the axes.
const MARGIN = { left: 38, top: 8, right: 8, bottom: 28 };
const LABELS = 8;
/** Below this a token is not the concept, and its word is not worth the room. */
const WORTH_A_LABEL = 0.05;
const LETTER = 6; // a label's usual width and height, in pixels
const LINE = 11;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * @param {number} width in pixels
 * @param {number} height
 * @param {Series[]} series
 * @param {string[]} words the tokens
 * @returns {Chart}
 */
export function layOut(width, height, series, words) {
  const left = MARGIN.left;
  const top = MARGIN.top;
  const right = Math.max(left + 1, width - MARGIN.right);
  const bottom = Math.max(top + 1, height - MARGIN.bottom);
  const [low, high] = range(series);
  const tallest = Math.max(1, ...series.map((one) => one.sliders.strength));
  const xOf = (similarity) => left + ((right - left) * (clamp(similarity, low, high) - low)) / (high - low);
  const yOf = (height) => bottom - ((bottom - top) * height) / tallest;

  const points = [];
  series.forEach((one, number) => {
    one.similarities.forEach((similarity, token) => {
      const own = weight(similarity, one.sliders);
      points.push({
        series: number,
        token,
        x: xOf(similarity),
        y: yOf(own),
        similarity,
        gate: gate(similarity, one.sliders),
        weight: own,
      });
    });
  });

  const curves = series.map((one) => {
    const line = curve(one.sliders, low, high, CURVE_POINTS);
    for (let i = 0; i < line.length; i += 2) {
      line[i] = xOf(line[i]);
      line[i + 1] = yOf(line[i + 1]);
    }
    return line;
  });

  return {
    left,
    top,
    right,
    bottom,
    columns: [0, 0.5, 1].map((value) => ({ value, x: xOf(value) })),
    rows: (tallest > 1 ? [0, 1, tallest] : [0, 0.5, 1]).map((value) => ({ value, y: yOf(value) })),
    curves,
    biases: series.map((one) => xOf(one.sliders.bias)),
    points,
    labels: label(points, words, left, right, top),
  };
}

/** The similarities to show: the usual ones, and as many more as the tokens need. */
function range(series) {
  let low = LOW;
  let high = HIGH;
  for (const one of series) {
    for (const similarity of one.similarities) {
      low = Math.min(low, similarity - 0.05);
      high = Math.max(high, similarity + 0.05);
    }
  }
  return [Math.max(low, LOWEST), Math.min(high, HIGHEST)];
}

/** Words of the tokens that a concept answers to most, as far as they do not meet. */
function label(points, words, left, right, top) {
  const strongest = points
    .filter((point) => point.gate >= WORTH_A_LABEL && words[point.token] !== undefined)
    .sort((a, b) => b.gate - a.gate || a.token - b.token);
  /** @type {Label[]} */
  const labels = [];
  for (const point of strongest) {
    if (labels.length === LABELS) break;
    const text = words[point.token];
    const half = (text.length * LETTER) / 2;
    const x = clamp(point.x, left + half, Math.max(left + half, right - half));
    const y = Math.max(point.y - 6, top + LINE - 2);
    const meets = labels.some(
      (other) =>
        Math.abs(other.x - x) < half + (other.text.length * LETTER) / 2 && Math.abs(other.y - y) < LINE,
    );
    if (!meets) labels.push({ series: point.series, token: point.token, text, x, y });
  }
  return labels;
}

/**
 * The point nearest to a place, at most `reach` pixels away.
 * @param {Chart} chart
 * @returns {Point | null}
 */
export function nearest(chart, x, y, reach = 24) {
  let best = null;
  let least = reach * reach;
  for (const point of chart.points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance <= least) {
      least = distance;
      best = point;
    }
  }
  return best;
}

/**
 * The token after the chosen one, for the arrow keys; it stops at both ends.
 * @param {number | null} token
 * @param {number} count
 * @param {string} key
 * @returns {number | null} null: none is chosen
 */
export function step(token, count, key) {
  if (!count || key === "Escape") return null;
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  if (token === null) return key === "ArrowLeft" ? count - 1 : 0;
  return clamp(token + (key === "ArrowLeft" ? -1 : 1), 0, count - 1);
}

/** How far `prospects` moves bias and temperature; it halves strength. */
const MORE = 0.1;

/**
 * What each slider would do to a token, for the concept that it is most.
 * @param {Series[]} series
 * @param {number} token
 * @param {typeof inEnglish} t the language
 * @returns {string[]} a line a slider; none where nothing is known of the token
 */
export function prospects(series, token, t = inEnglish) {
  const known = series.filter((one) => one.similarities[token] !== undefined);
  if (!known.length) return [];
  const weightOf = (one, sliders = one.sliders) => weight(one.similarities[token], sliders);
  const most = known.reduce((best, one) => (weightOf(one) > weightOf(best) ? one : best));
  const { sliders } = most;
  const moved = {
    bias: sliders.bias + MORE,
    temperature: sliders.temperature + MORE,
    strength: sliders.strength / 2,
  };
  const [bias, temperature, strength] = Object.entries(moved).map(([name, value]) => ({
    to: value.toFixed(2),
    gives: weightOf(most, { ...sliders, [name]: value }).toFixed(2),
  }));
  const now = weightOf(most).toFixed(2);
  return [
    t`now ${now} of ${most.name}`,
    t`bias ${bias.to} → ${bias.gives}`,
    t`temperature ${temperature.to} → ${temperature.gives}`,
    t`strength ${strength.to} → ${strength.gives}`,
  ];
}

/** What the chosen token is to each concept, in words. @param {typeof inEnglish} t the language */
export function describe(series, words, token, t = inEnglish) {
  const parts = series
    .filter((one) => one.similarities[token] !== undefined)
    .map((one) => {
      const similarity = one.similarities[token];
      return t`${one.name} similarity ${similarity.toFixed(2)}, gate ${gate(similarity, one.sliders).toFixed(2)}`;
    });
  return `"${words[token]}": ${parts.join("; ")}`;
}
