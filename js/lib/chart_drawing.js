// A gate plot on a canvas.

/** One colour a concept, told apart by most eyes; for a light and for a dark ground. */
const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#B8518F", "#A86F00", "#2A7FB0", "#8A6A00", "#555555"];
const DARK = ["#56B4E9", "#FF8A4C", "#2CC79A", "#F0A6D0", "#F2B93B", "#9AD5F7", "#D2B13C", "#BBBBBB"];

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
 * @param {{colours: string[], ink: string, faint: string, ground: string, chosen: number | null}} style
 *   chosen: number of the token that is looked at
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
  context.globalAlpha = 1;

  chart.curves.forEach((points, number) => {
    const colour = style.colours[number % style.colours.length];
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash([3, 3]);
    context.beginPath();
    line(context, chart.biases[number], top, chart.biases[number], bottom);
    context.stroke();
    context.setLineDash([]);
    context.lineWidth = 1.5;
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.stroke();
  });

  for (const point of chart.points) {
    context.fillStyle = style.colours[point.series % style.colours.length];
    context.globalAlpha = 0.35 + 0.65 * point.gate;
    dot(context, point.x, point.y, 3);
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

function dot(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}
