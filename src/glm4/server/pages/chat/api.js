// Requests to the server. Addresses are relative to the folder of the page, so a proxy may add a prefix.

/** A request that failed. `status` is 0 if the server was not reached; `code` is the server's word for the reason. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const AWAY = [0, 502, 503, 504];

/** Whether an error says that the server was not reached, or cannot answer for now: the same may work later. */
export function isAway(error) {
  return error instanceof ApiError && (AWAY.includes(error.status) || error.code === "shutting_down");
}

/** Adds api, errorText and fail (a notice of it) to the app. Whether the server answers is told to app.reached. */
export function setupApi(app) {
  async function request(method, path, body, { signal } = {}) {
    const sent = {};
    if (body !== undefined) sent["Content-Type"] = "application/json";
    if (method !== "GET" && app.session?.token) sent["X-GLM4-Token"] = app.session.token;
    let answer;
    try {
      answer = await fetch(path, { method, headers: sent, signal, cache: "no-store", credentials: "same-origin",
        body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      app.reached(false);
      throw new ApiError(0, "unreachable", error.message);
    }
    app.reached(true);
    if (answer.ok) return answer;
    if (answer.status === 401) app.unauthorized();
    throw asError(answer.status, await answer.text().catch(() => ""));
  }

  async function json(method, path, body, options) {
    const answer = await request(method, path, body, options);
    try {
      return await answer.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "unreachable", error.message);
    }
  }

  app.api = {
    get: (path, options) => json("GET", path, undefined, options),
    post: (path, body = {}, options) => json("POST", path, body, options),
    put: (path, body, options) => json("PUT", path, body, options),
    patch: (path, body, options) => json("PATCH", path, body, options),
    del: (path, options) => json("DELETE", path, undefined, options),
    /** The response itself: event streams, texts. */
    open: (path, options) => request("GET", path, undefined, options),
    upload: (file, onProgress = () => {}, signal = null) => upload(app, file, onProgress, signal),
  };

  app.errorText = (error) => {
    if (!(error instanceof ApiError)) return app.t("error.other", { message: error.message ?? String(error) });
    const values = { message: error.message, status: String(error.status) };
    if (error.code && app.has(`error.${error.code}`)) return app.t(`error.${error.code}`, values);
    if (app.has(`error.status_${error.status}`)) return app.t(`error.status_${error.status}`, values);
    return app.t("error.other", values);
  };

  app.fail = (error) => app.notice(app.errorText(error), "error");
}

function asError(status, text) {
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "object") return new ApiError(status, error.code ?? "", error.message ?? "");
  } catch {
    // not the server's form: a proxy's page, say
  }
  return new ApiError(status, "", `HTTP ${status}`);
}

/** Send a file as it is; fetch cannot tell how much has been sent, so this is an XMLHttpRequest. */
function upload(app, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `v1/agent/files?name=${encodeURIComponent(file.name || "file")}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    if (app.session?.token) request.setRequestHeader("X-GLM4-Token", app.session.token);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      app.reached(true);
      if (request.status === 200) {
        resolve(JSON.parse(request.responseText));
        return;
      }
      if (request.status === 401) app.unauthorized();
      reject(asError(request.status, request.responseText));
    };
    request.onerror = () => {
      app.reached(false);
      reject(new ApiError(0, "unreachable", ""));
    };
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
