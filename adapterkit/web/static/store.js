// What the page shows. All of it is the server's, except for what is chosen on this page: the
// frame, the structure, the tool and how the picture is seen.

export const page = {
  state: null, // as GET /api/state answers
  image: null, // as GET /api/images/{id} answers, with `answers` and `pictures` by
  // frame, and the `changes` that the server has not answered yet
  frame: 0,
  structure: 1, // the label of the structure that prompts are about
  tool: "point",
  inside: true, // what a click marks
  radius: 8, // of the brush, in heights of a pixel
  shown: null, // the image whose picture is on the screen
  playing: false, // whether frames pass by themselves
  opening: false, // whether another image is asked for
  outlines: true, // whether masks are shown
};

const bus = new EventTarget();

/**
 * Call `act` whenever one of the topics changes: "state", "image", "frame", "answer", "tool",
 * "structure", "picture", "waiting".
 */
export function on(topics, act) {
  for (const topic of topics.split(" ")) bus.addEventListener(topic, act);
}

export function emit(...topics) {
  for (const topic of topics) bus.dispatchEvent(new Event(topic));
}

export function answerOf(frame = page.frame) {
  return page.image?.answers.get(frame) ?? null;
}

export function structureOf(label = page.structure) {
  return page.state?.structures.find((each) => each.label === label) ?? null;
}

/** Choose what a next click is about, in another tool or for another structure. */
export function choose(values) {
  Object.assign(page, values);
  try {
    const { structure, tool, inside, radius } = page;
    sessionStorage.setItem("chosen", JSON.stringify({ structure, tool, inside, radius }));
  } catch {
    // Then a reload begins with the defaults.
  }
  emit("tool", "structure");
}

/** What was chosen before the page was loaded again. */
export function restore() {
  try {
    Object.assign(page, JSON.parse(sessionStorage.getItem("chosen") ?? "{}"));
  } catch {
    // The defaults hold.
  }
}
