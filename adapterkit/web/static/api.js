// Requests to the server that this page came from.

/**
 * What the server refuses, in its own sentence; `retried` says that it may have been asked before,
 * and have gone before it answered.
 */
export class Refusal extends Error {
  constructor(status, detail, body) {
    super(detail);
    this.status = status;
    this.body = body;
  }
}

const RETRY = 1500; // ms
let absent = 0; // requests that wait for the server to come back
let tellAbsence = () => {};

/** `tell(whether)` is called when the server stops answering, and when it answers again. */
export function onAbsence(tell) {
  tellAbsence = tell;
}

/**
 * A request that waits, if the server is not there, until it is: nothing that was drawn is lost
 * while the server starts again.
 */
async function request(method, path, { body, form } = {}) {
  const options = { method, headers: {} };
  if (form) options.body = form;
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let response = null;
  let missed = false;
  while (response === null) {
    try {
      response = await fetch(path, options);
    } catch {
      if (!missed && absent++ === 0) tellAbsence(true);
      missed = true;
      await new Promise((resume) => setTimeout(resume, RETRY));
    }
  }
  if (missed && --absent === 0) tellAbsence(false);
  if (response.status === 401) location.reload(); // To where the server asks for its token.
  if (!response.ok) throw Object.assign(await refusal(response), { retried: missed });
  return response;
}

async function refusal(response) {
  let body = null;
  let told = "";
  try {
    told = await response.text();
    body = JSON.parse(told);
  } catch {
    // A proxy's page, or a plain sentence.
  }
  let detail = body?.detail ?? told;
  if (Array.isArray(detail)) detail = detail.map((each) => each.msg).join("; ");
  return new Refusal(response.status, detail || `the server answered ${response.status}`, body);
}

const json = async (...ask) => (await request(...ask)).json();

export const get = (path) => json("GET", path);
export const post = (path, body = {}) => json("POST", path, { body });
export const patch = (path, body) => json("PATCH", path, { body });
export const remove = (path) => json("DELETE", path);
export const upload = (path, form) => json("POST", path, { form });

export const blob = async (path) => (await request("GET", path)).blob();

/** The content of a file that the server gives, and its name. */
export async function file(path) {
  const response = await request("GET", path);
  const named = /filename\*?=(?:UTF-8'')?"?([^";]+)/i.exec(
    response.headers.get("content-disposition") ?? "",
  );
  return { blob: await response.blob(), name: named ? decodeURIComponent(named[1]) : null };
}

export const ofImage = (id) => `api/images/${encodeURIComponent(id)}`;
