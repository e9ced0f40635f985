// Lines of numbers as SVG.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** From values in [low, high] to a length, with room at both ends. */
export function scale(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** A line through points [x, y]; where y is null it is interrupted. */
export function line(points, attributes) {
  let d = "";
  let joined = false;
  for (const [x, y] of points) {
    if (y !== null) d += `${joined ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`;
    joined = y !== null;
  }
  return element("path", { d, fill: "none", "vector-effect": "non-scaling-stroke", ...attributes });
}
