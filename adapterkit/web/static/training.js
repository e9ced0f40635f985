// Training on what was accepted, and the choice of the adapter.

import { get, post, remove } from "./api.js";
import { refreshState, reload } from "./actions.js";
import { element, line, scale } from "./curve.js";
import { say, warn } from "./messages.js";
import { on, page } from "./store.js";

const EVERY = 1000; // ms between two looks at a training that runs
const LEAST = 3; // accepted images: one to learn from, one to choose the best epoch by, one held out
const panel = document.getElementById("training");
const adapter = document.getElementById("adapter");
const part = (name) => panel.querySelector(`.${name}`);
let timer = null;

on("state", render);

function render() {
  const { state } = page;
  if (!state) return;
  adapters(state);
  const training = state.training;
  const running = training?.status === "running";
  const accepted = state.images.filter((each) => each.status === "accepted").length;
  panel.hidden = state.folder === null;
  part("start").hidden = running;
  part("start").disabled = accepted < LEAST;
  part("start").textContent = training && !running ? "Train again" : "Train";
  part("stop").hidden = !running;
  part("resume").hidden = training?.status !== "stopped";
  part("told").textContent = told(training, accepted);
  part("progress").hidden = !running;
  part("progress").value = running ? training.epoch / Math.max(training.epochs, 1) : 0;
  part("offer").hidden = !training?.offer;
  draw(training?.curve ?? []);
  part("log").hidden = !training?.log_tail;
  part("log").querySelector("pre").textContent = training?.log_tail ?? "";
  if (running && timer === null) timer = setTimeout(look, EVERY);
}

function adapters({ adapters: known, adapter: used, demo_note: note, device }) {
  const names = known.map((each) => each.name);
  const choices = [...names, ""];
  if (`${[...adapter.options].map((each) => each.value)}` !== `${choices}` || !adapter.length) {
    adapter.replaceChildren(
      ...choices.map((name) => new Option(name || "none: the base alone", name)),
    );
  }
  adapter.value = used ?? "";
  const about = known.find((each) => each.name === used)?.note || note || "";
  document.getElementById("model-note").textContent = about;
  document.getElementById("model-note").dataset.tip = [about, device].filter(Boolean).join(" · ");
}

const dice = (value) => (value ?? null) === null ? "–" : value.toFixed(3);

function told(training, accepted) {
  if (!training) {
    return accepted < LEAST
      ? `Accept ${LEAST - accepted} more image${LEAST - accepted > 1 ? "s" : ""} to train on them.`
      : `On the ${accepted} accepted images, in the background.`;
  }
  const { status, epoch, epochs, dice: after, dice_before: before, images } = training;
  const compared = `Dice ${dice(before)} → ${dice(after)}`;
  if (status === "running") {
    const last = training.curve.at(-1);
    const now = last ? `, Dice ${dice(last.dice)} so far` : "";
    return `Epoch ${epoch} of ${epochs} on ${images} images${now}.`;
  }
  if (status === "done") return training.message || compared;
  return training.message || (status === "stopped" ? "Stopped." : "The training failed.");
}

/** Loss and Dice by epoch, each over its own range. */
function draw(curve) {
  const svg = part("curve");
  svg.toggleAttribute("hidden", curve.length < 2);
  if (curve.length < 2) return;
  const x = scale(curve[0].epoch, curve.at(-1).epoch, 4, 296);
  const losses = curve.map((each) => each.loss).filter((each) => (each ?? null) !== null);
  const of = {
    loss: scale(0, Math.max(...losses, 0), 66, 4),
    dice: scale(0, 1, 66, 4),
  };
  svg.replaceChildren(
    ...Object.entries(of).map(([name, y]) =>
      line(
        curve.map((each) => [x(each.epoch), (each[name] ?? null) === null ? null : y(each[name])]),
        { class: name },
      ),
    ),
    element("text", { x: 296, y: 78, class: "dice", "text-anchor": "end" }, "Dice, 0 to 1"),
    element("text", { x: 4, y: 78, class: "loss" }, "loss"),
  );
}

async function look() {
  timer = null;
  try {
    const training = await get("api/training");
    page.state.training = training;
    if (training?.status === "done") say("The training is done");
    if (training?.status === "failed") warn(training.message || "the training failed");
    if (training?.status === "running") render();
    else await refreshState();
  } catch (error) {
    warn(error.message);
  }
}

const acts = {
  start: () => post("api/training").then(refreshState),
  resume: () => post("api/training", { resume: true }).then(refreshState),
  stop: () => remove("api/training").then(refreshState),
  use: () => post("api/training/use").then(reload),
  dismiss: () => post("api/training/dismiss").then(refreshState),
};
for (const [name, act] of Object.entries(acts)) {
  part(name).addEventListener("click", async () => {
    try {
      await act();
    } catch (error) {
      warn(error.message);
    }
  });
}

adapter.addEventListener("change", async () => {
  document.body.classList.add("loading");
  try {
    await post("api/adapter", { name: adapter.value || null });
    await reload();
  } catch (error) {
    warn(error.message);
    render();
  } finally {
    document.body.classList.remove("loading");
  }
});
