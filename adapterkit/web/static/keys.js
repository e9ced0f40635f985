// Keys: the table of what they do, and the dialog that shows it.

const dialog = document.getElementById("keys");

/**
 * Listen to keys.
 *
 * Args:
 *   table: rows of the dialog, each `{ shown, told, keys, act }`: `keys` are names of keys as
 *     `KeyboardEvent.key` gives them, in lower case, after "Ctrl+" or "Shift+" where that is held.
 *   more: further `{ keys, act }`, which rows of the table tell of.
 */
export function listen(table, more) {
  const acts = new Map();
  for (const each of [...table, ...more]) for (const key of each.keys) acts.set(key, each.act);
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || document.querySelector("dialog[open]")) return;
    if (typed(event)) return;
    const held = event.ctrlKey || event.metaKey ? "Ctrl+" : "";
    const shift = event.shiftKey ? "Shift+" : "";
    const key = event.key.toLowerCase();
    // Of a sign, such as "?", Shift is a part on some keyboards.
    const act = acts.get(held + shift + key) ?? (key.length === 1 && !/[a-z0-9]/.test(key)
      ? acts.get(held + key)
      : undefined);
    if (!act) return;
    event.preventDefault();
    act(event);
  });
  const rows = table.map(({ shown, told }) => {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    for (const part of shown.split(" ")) {
      const joins = part === "or" || part === "…";
      const key = document.createElement(joins ? "span" : "kbd");
      key.textContent = joins ? ` ${part} ` : part;
      name.append(key);
    }
    row.append(name, Object.assign(document.createElement("td"), { textContent: told }));
    return row;
  });
  dialog.querySelector("tbody").replaceChildren(...rows);
}

export function showKeys() {
  dialog.showModal();
}

/** Whether the key is for what has the focus: text that is written, a list that is chosen from. */
function typed(event) {
  const { target } = event;
  if (target.matches("select, textarea, input[type=text], input[type=number]")) return true;
  const moves = /^(arrow|home|end|page)/i.test(event.key);
  if (target.matches("input[type=range]")) return moves;
  return target.matches("button, summary, a") && [" ", "Enter"].includes(event.key);
}

/** Let the arrows move the focus among the controls of a group, of which Tab reaches one. */
export function rove(group, selector) {
  group.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!by || !event.target.matches(selector)) return;
    event.preventDefault();
    const all = [...group.querySelectorAll(selector)].filter((each) => each.offsetParent);
    const next = all[all.indexOf(event.target) + by];
    if (!next) return;
    for (const each of all) each.tabIndex = each === next ? 0 : -1;
    next.focus();
    if (next.matches("[role=radio]")) next.click();
  });
}

document.getElementById("help").addEventListener("click", showKeys);
