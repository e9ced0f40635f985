// What the page says: messages that pass, errors that stay until they are read, and questions.

const list = document.getElementById("messages");
const live = document.getElementById("live");
const MAX = 4;

function add(text, kind, seconds) {
  // Of what passes, the last is enough.
  if (kind === "info") list.querySelector(".info")?.remove();
  for (const each of list.children) if (each.firstChild.textContent === text) each.remove();
  while (list.children.length >= MAX) list.firstChild.remove();
  const message = document.createElement("div");
  message.className = `message ${kind}`;
  message.setAttribute("role", kind === "error" ? "alert" : "status");
  const told = document.createElement("span");
  told.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "icon";
  close.textContent = "×";
  close.setAttribute("aria-label", "Close this message");
  close.addEventListener("click", () => message.remove());
  message.append(told, close);
  list.append(message);
  if (seconds) setTimeout(() => message.remove(), 1000 * seconds);
}

/** A message that passes. */
export const say = (text) => add(text, "info", 5);

/** What went wrong, until it is closed. */
export const warn = (text) => add(sentence(text), "error", 0);

/** What only a screen reader says. */
export function tell(text) {
  if (live.textContent !== text) live.textContent = text;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A question; true for `yes`, false for `no` and where it is closed. */
export function ask({ title, text, yes, no = "Cancel" }) {
  const dialog = document.getElementById("question");
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  dialog.querySelector("[value=yes]").textContent = yes;
  dialog.querySelector("[value=no]").textContent = no;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true });
  });
}
