// Sequences: their frames, playing them, areas over time, and two views beside each other.

import { get, ofImage } from "./api.js";
import { carry, load, open, pictureOf, showFrame } from "./actions.js";
import { element, line, scale } from "./curve.js";
import { decode, drawn } from "./masks.js";
import { answerOf, emit, on, page, structureOf } from "./store.js";
import { Viewer } from "./viewer.js";

const INTERVAL = 0.05; // s between frames whose times are not known
const timeline = document.getElementById("timeline");
const slider = document.getElementById("frame");
const curve = document.getElementById("areas");
const at = (id) => document.getElementById(id);
let playing = false;
let measures = null;
let other = null; // the view beside, as `page.image` is

on("image", opened);
on("frame answer structure", render);
on("picture answer", renderOther);

async function opened() {
  const { image } = page;
  pause();
  measures = null;
  const sequence = (image?.frames ?? 1) > 1;
  timeline.hidden = !sequence;
  at("beside").hidden = !image?.partner;
  if (!image?.partner || other?.id !== image.partner) await beside(false);
  if (!sequence) return;
  slider.max = image.frames;
  render();
  await behind(image);
}

/** Ask for all frames, one after the other, while nothing else waits. */
async function behind(image) {
  const order = [...Array(image.frames).keys()];
  for (const frame of order) {
    while (page.image === image && image.changes.length) {
      await new Promise((resume) => setTimeout(resume, 100));
    }
    if (page.image !== image) return;
    try {
      await Promise.all([load(image, frame), pictureOf(image, frame)]);
    } catch {
      return; // It is asked for again, and told, when it is shown.
    }
    render();
  }
  await measure(image);
}

async function measure(image) {
  try {
    const found = await get(`${ofImage(image.id)}/measures`);
    if (page.image === image) measures = found;
  } catch {
    measures = null; // The areas are drawn without.
  }
  render();
}

let again = null;
on("waiting", () => {
  const { image } = page;
  if (!image || image.frames < 2 || image.changes.length || image.answers.size < image.frames) return;
  clearTimeout(again);
  again = setTimeout(() => page.image === image && measure(image), 400);
});

function render() {
  const { image, frame } = page;
  if (!image || image.frames < 2) return;
  slider.value = frame + 1;
  at("frame-told").textContent = `${frame + 1} / ${image.frames}`;
  slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${image.frames}`);
  at("carry").disabled = frame + 1 >= image.frames || !answerOf(frame)?.masks.length;
  drawCurve(image, frame);
}

// Areas over time

/** Of the chosen structure by frame, in pixels; null where it is not known yet. */
function areas(image) {
  return [...Array(image.frames).keys()].map((frame) => {
    const answer = image.answers.get(frame);
    if (!answer) return null;
    return answer.masks.find((each) => each.structure === page.structure)?.area ?? 0;
  });
}

function drawCurve(image, frame) {
  const [width, height] = [curve.clientWidth || 600, curve.clientHeight || 64];
  const values = areas(image);
  const known = values.filter((each) => each !== null);
  const x = scale(0, image.frames - 1, 8, width - 8);
  const [low, high] = [Math.min(...known, Infinity), Math.max(...known, 0)];
  const y = scale(Math.min(low, high), high, height - 16, 14);
  const parts = [element("line", { x1: x(frame), x2: x(frame), y1: 0, y2: height, class: "now" })];
  const colour = structureOf()?.colour ?? "currentColor";
  parts.push(
    line(values.map((each, k) => [x(k), each === null ? null : y(each)]), {
      stroke: colour,
      "stroke-width": 2,
    }),
  );
  const { ed, es } = extremes(values);
  for (const [name, k] of [["ED", ed], ["ES", es]]) {
    if (k === null || !values[k]) continue;
    const end = k > 0.9 * image.frames ? "end" : k < 0.1 * image.frames ? "start" : "middle";
    const label = { x: x(k), y: name === "ED" ? 10 : height - 3, "text-anchor": end };
    parts.push(
      element("circle", { cx: x(k), cy: y(values[k]), r: 3.5, fill: colour }),
      element("text", { ...label, class: "extreme" }, name),
    );
  }
  curve.setAttribute("viewBox", `0 0 ${width} ${height}`);
  curve.replaceChildren(...parts);
  volumes();
}

/** The frames of the largest and the smallest area, once all are known. */
function extremes(values) {
  if (measures && (measures.ed ?? null) !== null && measures.structure === page.structure) {
    return { ed: measures.ed, es: measures.es };
  }
  if (values.includes(null)) return { ed: null, es: null };
  return { ed: values.indexOf(Math.max(...values)), es: values.indexOf(Math.min(...values)) };
}

/** Volumes and ejection fraction, where the server has measured them. */
function volumes() {
  const place = at("volumes");
  const known = measures && (measures.ef_percent ?? null) !== null;
  place.hidden = !known;
  if (!known) return;
  const warnings = measures.warnings ?? [];
  const of = (name, value) => ((value ?? null) === null ? [] : [`${name} ${value.toFixed(0)} ml`]);
  const sizes = [...of("EDV", measures.edv_ml), ...of("ESV", measures.esv_ml)].join(", ");
  place.querySelector("b").textContent = `EF ${measures.ef_percent.toFixed(0)} %`;
  place.querySelector("span").textContent = sizes;
  place.classList.toggle("doubtful", warnings.length > 0);
  place.dataset.tip = [`By ${measures.method}. Not for clinical use.`, ...warnings].join(" ");
}

curve.addEventListener("pointerdown", (event) => {
  curve.setPointerCapture(event.pointerId);
  seek(event);
});
curve.addEventListener("pointermove", (event) => event.buttons && seek(event));

function seek(event) {
  const { left, width } = curve.getBoundingClientRect();
  const part = (event.clientX - left - 8) / (width - 16);
  pause();
  showFrame(Math.round(part * (page.image.frames - 1)));
}

// Playing

export function play() {
  if (playing) return pause();
  if ((page.image?.frames ?? 1) < 2) return;
  playing = page.playing = true;
  at("play").setAttribute("aria-pressed", "true");
  requestAnimationFrame((now) => tick(now, now));
}

export function pause() {
  if (!playing) return;
  playing = page.playing = false;
  at("play").setAttribute("aria-pressed", "false");
  showFrame(page.frame);
}

function tick(now, shown) {
  const { image, frame } = page;
  if (!playing || !image) return;
  const next = (frame + 1) % image.frames;
  const times = image.frame_times;
  const lasts = (times && next > frame ? times[next] - times[frame] : INTERVAL) || INTERVAL;
  if (now - shown >= 1000 * lasts && image.answers.has(next)) {
    if (image.pictures.has(next)) {
      page.frame = next;
      emit("frame", "picture", "answer");
      shown = now;
    } else {
      pictureOf(image, next).catch(pause);
    }
  }
  requestAnimationFrame((later) => tick(later, shown));
}

export function stepFrame(by) {
  pause();
  if ((page.image?.frames ?? 1) > 1) showFrame(page.frame + by);
}

at("play").addEventListener("click", play);
slider.addEventListener("input", () => {
  pause();
  showFrame(Number(slider.value) - 1);
});
at("carry").addEventListener("click", () => carry(page.frame + 1));
at("carry-all").addEventListener("click", () => carry(page.image.frames - 1));

// The other view

let viewer = null;

export async function beside(whether) {
  at("beside").setAttribute("aria-pressed", whether);
  at("second").hidden = !whether;
  document.body.classList.toggle("beside", whether);
  if (!whether) {
    other = null;
    return;
  }
  const { image } = page;
  viewer ??= new Viewer(at("other"));
  const found = await get(ofImage(image.partner));
  if (page.image !== image) return;
  other = { ...found, answers: new Map(), pictures: new Map(), changes: [] };
  at("other-told").textContent = other.id;
  await renderOther();
}

async function renderOther() {
  if (!other || !page.image) return;
  const shown = other;
  // The same part of the beat.
  const part = page.image.frames > 1 ? page.frame / (page.image.frames - 1) : 0;
  const frame = Math.round(part * (shown.frames - 1));
  const [bitmap, answer] = await Promise.all([pictureOf(shown, frame), load(shown, frame)]);
  if (other !== shown) return;
  viewer.masks = answer.masks.map(({ structure, rle }) =>
    drawn(decode(rle), shown.width, shown.height, structure, structureOf(structure)?.colour ?? "#fff"),
  );
  viewer.masks.sort((a, b) => (a.label === page.structure) - (b.label === page.structure));
  viewer.chosen = page.structure;
  viewer.show(bitmap, shown, true);
}

at("beside").addEventListener("click", () => beside(other === null));
at("other").addEventListener("click", async () => {
  await open(other.id);
  await beside(true);
});
