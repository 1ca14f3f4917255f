// A gate plot on a canvas.

/** One colour a concept, told apart by most eyes; for a light and for a dark ground. */
const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#B8518F", "#A86F00", "#2A7FB0", "#8A6A00", "#555555"];
const DARK = ["#56B4E9", "#FF8A4C", "#2CC79A", "#F0A6D0", "#F2B93B", "#9AD5F7", "#D2B13C", "#BBBBBB"];

/** A shape and a kind of line a concept, for those who see no colours. */
const SHAPES = [circle, square, triangle, diamond, cross, hourglass, bar, ring];
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4], [12, 3], [1, 4], [9, 2, 2, 2, 2, 2]];

/** How the legend shows the shapes. */
export const GLYPHS = ["●", "■", "▲", "◆", "✚", "⧗", "▬", "○"];

/** The concepts' colours on a ground. @param {boolean} dark */
export function coloursOn(dark) {
  return dark ? DARK : LIGHT;
}

/** Whether a colour, as the browser computes it, is nearer to black than to white. */
export function isDark(colour) {
  const numbers = colour.match(/[\d.]+/g)?.map(Number) ?? [];
  if (numbers.length < 3) return true;
  const [red, green, blue] = numbers;
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}

/**
 * @param {CanvasRenderingContext2D} context scaled to CSS pixels
 * @param {import("./chart.js").Chart} chart
 * @param {{colours: string[], ink: string, faint: string, ground: string, chosen: number | null,
 *   across: string, up: string}} style chosen: number of the token that is looked at; across, up: what
 *   the axes show
 */
export function drawChart(context, chart, style) {
  const { left, top, right, bottom } = chart;
  context.font = "10px sans-serif";
  context.lineWidth = 1;
  context.strokeStyle = style.faint;
  context.fillStyle = style.ink;

  context.globalAlpha = 0.35;
  context.beginPath();
  for (const { x } of chart.columns) line(context, x, top, x, bottom);
  for (const { y } of chart.rows) line(context, left, y, right, y);
  context.stroke();
  context.globalAlpha = 0.8;
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const { value, x } of chart.columns) context.fillText(`${value}`, x, bottom + 3);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const { value, y } of chart.rows) context.fillText(`${+value.toFixed(2)}`, left - 4, y);
  context.textAlign = "center";
  context.textBaseline = "bottom";
  context.fillText(style.across, (left + right) / 2, bottom + 27);
  context.save();
  context.translate(12, (top + bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(style.up, 0, 0);
  context.restore();
  context.globalAlpha = 1;

  chart.curves.forEach((points, number) => {
    const colour = style.colours[number % style.colours.length];
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash([1, 3]);
    context.beginPath();
    line(context, chart.biases[number], top, chart.biases[number], bottom);
    context.stroke();
    context.setLineDash(DASHES[number % DASHES.length]);
    context.lineWidth = 1.5;
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.stroke();
    context.setLineDash([]);
  });

  for (const point of chart.points) {
    context.fillStyle = style.colours[point.series % style.colours.length];
    context.strokeStyle = context.fillStyle;
    context.lineWidth = 1.5;
    context.globalAlpha = 0.35 + 0.65 * point.gate;
    context.beginPath();
    SHAPES[point.series % SHAPES.length](context, point.x, point.y);
  }
  context.globalAlpha = 1;

  for (const point of chart.points) {
    if (point.token !== style.chosen) continue;
    context.strokeStyle = style.ink;
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(point.x, point.y, 5, 0, 2 * Math.PI);
    context.stroke();
  }

  context.textAlign = "center";
  context.textBaseline = "alphabetic";
  context.lineWidth = 3;
  context.strokeStyle = style.ground;
  for (const label of chart.labels) {
    context.fillStyle = style.colours[label.series % style.colours.length];
    // Its ground around it, so that it is read on top of a curve.
    context.strokeText(label.text, label.x, label.y);
    context.fillText(label.text, label.x, label.y);
  }
}

function line(context, x0, y0, x1, y1) {
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
}

function circle(context, x, y) {
  context.arc(x, y, 3, 0, 2 * Math.PI);
  context.fill();
}

function square(context, x, y) {
  context.rect(x - 2.7, y - 2.7, 5.4, 5.4);
  context.fill();
}

function triangle(context, x, y) {
  corners(context, [x, y - 3.8], [x + 3.6, y + 2.6], [x - 3.6, y + 2.6]);
}

function diamond(context, x, y) {
  corners(context, [x, y - 4], [x + 4, y], [x, y + 4], [x - 4, y]);
}

function cross(context, x, y) {
  line(context, x - 3.5, y, x + 3.5, y);
  line(context, x, y - 3.5, x, y + 3.5);
  context.stroke();
}

function hourglass(context, x, y) {
  corners(context, [x - 3, y - 3.5], [x + 3, y - 3.5], [x - 3, y + 3.5], [x + 3, y + 3.5]);
}

function bar(context, x, y) {
  context.rect(x - 4, y - 1.5, 8, 3);
  context.fill();
}

function ring(context, x, y) {
  context.arc(x, y, 3, 0, 2 * Math.PI);
  context.stroke();
}

function corners(context, ...points) {
  for (const [x, y] of points) context.lineTo(x, y);
  context.closePath();
  context.fill();
}
