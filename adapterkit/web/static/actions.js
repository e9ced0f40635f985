// What is asked of the server: images, frames, and changes of them, one after the other.

import { blob, get, ofImage, post } from "./api.js";
import { ask, say, warn } from "./messages.js";
import { answerOf, emit, page } from "./store.js";

const KEPT = 256 * 2 ** 20; // bytes of pictures that are kept for coming back to them

export async function refreshState() {
  setState(await get("api/state"));
}

export function setState(state) {
  page.state = state;
  const labels = state.structures.map((each) => each.label);
  if (labels.length && !labels.includes(page.structure)) page.structure = labels[0];
  emit("state", "structure");
}

// Images and frames

let latest = 0; // Of several images asked for, the last is shown.

/** Show an image at a frame; true if that is what the page shows then. */
export async function open(id, frame = 0) {
  const turn = ++latest;
  page.opening = true;
  emit("waiting");
  try {
    const image = await get(ofImage(id));
    if (turn !== latest) return false;
    page.image = { ...image, answers: new Map(), pictures: new Map(), changes: [] };
    page.frame = Math.min(Math.max(frame, 0), image.frames - 1);
    address();
    emit("image");
    await show();
    return turn === latest;
  } catch (error) {
    if (turn === latest) warn(error.message);
    return false;
  } finally {
    if (turn === latest) page.opening = false;
    emit("waiting");
  }
}

export function close() {
  latest++;
  page.image = null;
  page.frame = 0;
  address();
  emit("image", "frame", "picture", "answer");
}

/** Show another frame of the image. */
export async function showFrame(frame) {
  const { image } = page;
  if (!image) return;
  page.frame = Math.min(Math.max(frame, 0), image.frames - 1);
  address();
  await show();
}

async function show() {
  const { image, frame } = page;
  const here = () => page.image === image && page.frame === frame;
  const known = image.pictures.has(frame);
  emit("frame", ...(known ? ["picture"] : []), "answer");
  try {
    await Promise.all([
      pictureOf(image, frame).then(() => here() && !known && emit("picture")),
      load(image, frame).then(() => here() && emit("answer")),
    ]);
  } catch (error) {
    if (here()) warn(error.message);
  }
}

/** The page's address names the image and the frame, so that a reload finds them again. */
function address() {
  const { image, frame } = page;
  const of = image ? `#${encodeURIComponent(image.id)}${frame ? `/${frame + 1}` : ""}` : "#";
  if (location.hash !== of) history.replaceState(null, "", of);
}

export function addressed() {
  const [id, frame] = location.hash.slice(1).split("/");
  return { id: decodeURIComponent(id ?? ""), frame: Number(frame ?? 1) - 1 || 0 };
}

/** A frame's picture, which is kept while there is room. */
export async function pictureOf(image, frame) {
  if (!image.pictures.has(frame)) {
    const content = await blob(`${ofImage(image.id)}/frames/${frame}/picture`);
    const bitmap = await createImageBitmap(content, { colorSpaceConversion: "none" });
    const room = Math.max(2, Math.floor(KEPT / (4 * bitmap.width * bitmap.height)));
    // The oldest makes way.
    if (image.pictures.size >= room) image.pictures.delete(image.pictures.keys().next().value);
    image.pictures.set(frame, bitmap);
  }
  return image.pictures.get(frame);
}

/** A frame's answer; `anew` asks for it even if it is known. */
export async function load(image, frame, anew = false) {
  if (anew || !image.answers.has(frame)) {
    const answer = await get(`${ofImage(image.id)}/frames/${frame}`);
    // A change may have been answered meanwhile.
    if (anew || !image.answers.has(frame)) image.answers.set(frame, answer);
    image.revision = Math.max(image.revision, answer.revision);
  }
  return image.answers.get(frame);
}

/** See what others have done meanwhile; what is shown here follows, if nothing waits here. */
export async function catchUp() {
  await refreshState();
  const { image, frame } = page;
  const listed = page.state.images.find((each) => each.id === image?.id);
  const behind = listed && listed.revision !== image.revision;
  if (behind && !image.changes.length && !page.opening) await open(image.id, frame);
}

/** Ask for all that the page shows again, as after another adapter was chosen. */
export async function reload() {
  await refreshState();
  const { image, frame } = page;
  if (image) await open(image.id, frame);
}

// Changes

let queue = Promise.resolve();

/**
 * Change an image. What is not answered yet waits: each change names the revision before it.
 *
 * Args:
 *   path: below the image's own.
 *   body: of the request, without the revision.
 *
 * Returns:
 *   What the server answers, or null where it refused, or the user took back.
 */
export function change(path, body) {
  const { image, frame } = page;
  if (!image) return Promise.resolve(null);
  const waiting = { path, frame };
  image.changes.push(waiting);
  emit("waiting");
  const done = queue.then(() => send(image, path, body, waiting));
  queue = done;
  return done;
}

async function send(image, path, body, waiting) {
  const url = `${ofImage(image.id)}/${path}`;
  try {
    if (image.givenUp) return null;
    let answer = null;
    try {
      answer = await post(url, { ...body, revision: image.revision });
    } catch (error) {
      if (error.status !== 409) throw error;
      answer = error.retried ? await saved(image, path, body) : null;
      if (!answer) {
        if (!(await overwrite(image, error.message))) return null;
        answer = await post(url, { ...body, revision: image.revision, force: true });
        image.answers.clear();
      }
    }
    image.changes = image.changes.filter((each) => each !== waiting);
    image.revision = answer.revision ?? image.revision;
    noteStatus(image, answer.status);
    if (answer.masks) take(image, answer);
    return answer;
  } catch (error) {
    warn(error.message);
    await load(image, page.frame, true).catch(() => {});
    if (page.image === image) emit("answer");
    return null;
  } finally {
    image.changes = image.changes.filter((each) => each !== waiting);
    emit("waiting");
  }
}

/** What a change of a frame came to; what waits for its own answer stays shown as it is. */
function take(image, answer) {
  const before = image.answers.get(answer.frame);
  const after = image.changes.filter((each) => each.frame === answer.frame);
  if (before && after.length) answer.prompts = before.prompts;
  if (before && after.some((each) => each.path.endsWith("/mask"))) answer.masks = before.masks;
  image.answers.set(answer.frame, answer);
  if (page.image === image && page.frame === answer.frame) emit("answer");
}

/** A frame's answer, if it holds what was sent: then the server had saved it before it went. */
async function saved(image, path, body) {
  const [, frame, what] = /^frames\/(\d+)\/(prompts|mask)$/.exec(path) ?? [];
  if (!what) return null;
  const answer = await get(`${ofImage(image.id)}/frames/${frame}`);
  const of = answer[what === "mask" ? "masks" : "prompts"].find(
    (each) => each.structure === body.structure,
  );
  const told = ({ points, box, rle }) =>
    what === "mask" ? rle.counts.join() : `${points.map((p) => [p.x, p.y, p.inside])}|${box}`;
  return of && told(of) === told(body) ? answer : null;
}

async function overwrite(image, told) {
  const mine = await ask({
    title: "Changed elsewhere",
    text: `${image.name} was changed in another tab or by someone else since you opened it. ${told}`,
    yes: "Overwrite with mine",
    no: "Show theirs",
  });
  // What waits was made on what is given up.
  image.givenUp = !mine;
  if (!mine && page.image === image) await open(image.id, page.frame);
  return mine;
}

function noteStatus(image, status) {
  const listed = page.state?.images.find((each) => each.id === image.id);
  if (!status || (image.status === status && listed?.status === status)) return;
  image.status = status;
  if (listed) listed.status = status;
  emit("state");
}

/** Wait until it is known what there is in the frame; false if the page shows another then. */
export async function ready() {
  const { image, frame } = page;
  if (!image || page.opening) return false;
  try {
    await load(image, frame);
  } catch (error) {
    warn(error.message);
    return false;
  }
  return page.image === image && page.frame === frame;
}

/** Replace the prompts of a structure in the frame; they are shown before the server answers. */
export function prompt(structure, points, box) {
  const answer = answerOf();
  if (answer) {
    const others = answer.prompts.filter((each) => each.structure !== structure);
    answer.prompts = [...others, { structure, points, box }];
    emit("answer");
  }
  return change(`frames/${page.frame}/prompts`, { structure, points, box });
}

/** The prompts of a structure in the frame. */
export function promptsOf(structure) {
  const found = answerOf()?.prompts.find((each) => each.structure === structure);
  return { points: found?.points ?? [], box: found?.box ?? null };
}

/** Replace the mask of a structure in the frame; it, too, is shown before the server answers. */
export function setMask(structure, rle) {
  const answer = answerOf();
  if (answer) {
    const others = answer.masks.filter((each) => each.structure !== structure);
    const area = rle.counts.reduce((sum, each, k) => sum + (k % 2 ? each : 0), 0);
    answer.masks = [...others, { structure, rle, area, edited: true }];
    emit("answer");
  }
  return change(`frames/${page.frame}/mask`, { structure, rle });
}

export const undo = () => change("undo", { frame: page.frame });
export const redo = () => change("redo", { frame: page.frame });
export const clear = () => change("clear", { frame: page.frame });

/** Let the masks of this frame be prompts of the following ones, up to `to`. */
export async function carry(to) {
  const { image, frame } = page;
  const answer = await change("carry", { frame, to });
  if (!answer) return;
  for (let each = frame + 1; each <= to; each++) image.answers.delete(each);
  say(`Carried to frame${to > frame + 1 ? `s ${frame + 2} to` : ""} ${to + 1}`);
  emit("answer");
}

/** Accept the masks as they are shown, and go to the next image. */
export async function accept() {
  const { image } = page;
  const answer = await change("accept", {});
  if (!answer) return;
  say(`Saved as ${answer.path}${answer.next ? "" : ". All images are accepted"}`);
  if (answer.next && page.image === image) await open(answer.next);
  await refreshState();
}

export async function reopen() {
  if (await change("reopen", {})) await refreshState();
}

/** The image after or before this one in the list's order. */
export function step(by) {
  const { images } = page.state;
  const at = images.findIndex((each) => each.id === page.image?.id);
  const next = images[at + by];
  if (next) return open(next.id);
  return Promise.resolve(false);
}
