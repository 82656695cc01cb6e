// The chat box and the list of exchanges. The key is kept for this tab alone.

const at = (id) => document.getElementById(id);
const log = at("log");
const messages = []; // of the conversation, as the API wants them
let underWay = null; // what stops the answer that is coming
let known = false; // whether the key is one that the gateway knows

const authorization = () => ({ authorization: `Bearer ${at("key").value.trim()}` });
const time = (seconds) =>
  seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;

// The server's error message, or the status if there is no message.
async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The gateway answered ${response.status}.`;
  }
}

// Access

async function useKey() {
  sessionStorage.setItem("key", at("key").value);
  const state = at("access-state");
  let models = [];
  try {
    const response = await fetch("/v1/models", { headers: authorization() });
    known = response.ok;
    state.textContent = known ? "Key accepted" : `Not accepted: ${await refusal(response)}`;
    if (known) models = (await response.json()).data;
  } catch {
    known = false;
    state.textContent = "The gateway cannot be reached";
  }
  state.classList.toggle("bad", !known);
  at("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  showControls();
  await showExchanges();
}

function showControls() {
  at("model").disabled = at("send").disabled = !known || underWay !== null;
  at("stop").disabled = underWay === null;
}

// Chat

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function say(who, text, className = "") {
  at("nothing-said")?.remove();
  const said = element("div", `said ${className}`);
  const words = element("span", "words", text);
  said.append(element("span", "who", who), words);
  log.append(said);
  log.scrollTop = log.scrollHeight;
  return { said, words };
}

// The data of each event of a stream, as it comes.
async function* events(response) {
  let rest = "";
  for await (const text of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
    const parts = (rest + text).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).trim()).join("\n");
    }
  }
}

async function* pieces(stream) { // Safari cannot iterate over a stream
  const reader = stream.getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Time to the first token, and tokens a second from there on.
function pace() {
  const began = performance.now();
  let first = null;
  let count = 0;
  for (const id of ["first-token", "rate", "count"]) at(id).textContent = "–";
  return () => {
    const now = performance.now();
    first ??= now;
    count += 1;
    at("first-token").textContent = time((first - began) / 1000);
    at("count").textContent = String(count);
    if (count > 1) at("rate").textContent = (((count - 1) * 1000) / (now - first)).toFixed(1);
  };
}

async function answer(model, words, signal) {
  const token = pace();
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { ...authorization(), "content-type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
    signal,
  });
  if (!response.ok) throw new Error(await refusal(response));
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    const text = event.choices?.[0]?.delta?.content;
    if (!text) continue;
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    words.append(text);
    token();
    if (follows) log.scrollTop = log.scrollHeight;
  }
  throw new Error("The answer broke off.");
}

async function ask() {
  const prompt = at("prompt").value.trim();
  if (!prompt || !known || underWay) return;
  const model = at("model").value;
  at("prompt").value = "";
  messages.push({ role: "user", content: prompt });
  say("You", prompt, "own");
  const { said, words } = say(model, "");
  said.setAttribute("aria-busy", "true");
  underWay = new AbortController();
  showControls();
  if (document.activeElement === document.body) at("stop").focus();
  showExchangesIn(50);
  try {
    await answer(model, words, underWay.signal);
  } catch (error) {
    if (underWay.signal.aborted) {
      said.append(element("span", "note", "You stopped it here."));
    } else {
      const text = error instanceof TypeError ? "The gateway cannot be reached." : error.message;
      const failure = element("span", "failure", text);
      failure.setAttribute("role", "alert");
      said.append(failure);
    }
    log.scrollTop = log.scrollHeight;
  }
  said.removeAttribute("aria-busy");
  if (words.textContent) messages.push({ role: "assistant", content: words.textContent });
  underWay = null;
  const focused = [document.body, at("stop")].includes(document.activeElement);
  showControls();
  if (focused) at("prompt").focus(); // not on a phone, where it would raise the keyboard
}

// Exchanges

const OUTCOMES = {
  completed: "Completed",
  replaced: "Refused",
  caller_disconnected_before_headers: "You left before it began",
  caller_disconnected_mid_body: "You stopped it",
  body_failed: "Upstream died",
  deadline: "Took too long",
  cancelled: "Gateway stopped",
};

function outcomeOf({ outcome, failed, status }) {
  if (outcome === null) return ["Live", "live"];
  if (outcome === "completed" && status >= 400) return [`Answered ${status}`, "failed"];
  const text = OUTCOMES[outcome] ?? outcome.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());
  return [text, failed ? "failed" : outcome];
}

function row(exchange) {
  const [text, className] = outcomeOf(exchange);
  const top = element("div", "top");
  top.append(element("span", "model", exchange.model), element("span", `outcome ${className}`, text));
  const { tokens } = exchange;
  const facts = [`${tokens} token${tokens === 1 ? "" : "s"}`, time(exchange.duration)];
  if (exchange.time_to_first_byte !== null)
    facts.push(`first byte after ${time(exchange.time_to_first_byte)}`);
  const item = element("li", "");
  item.append(top, element("div", "facts", facts.join(" · ")));
  return item;
}

let shown = "[]";
let next;

async function showExchanges() {
  let listed = "[]";
  if (known) {
    try {
      const response = await fetch("/exchanges", { headers: authorization() });
      if (response.ok) listed = await response.text();
    } catch {
      return; // the list stays as it is until the gateway is back
    }
  }
  if (listed === shown) return; // so that what is selected stays selected
  shown = listed;
  const rows = JSON.parse(listed).map(row);
  at("exchanges").replaceChildren(...rows);
  at("no-exchanges").hidden = rows.length > 0;
}

// Often while something is under way, and not at all while nobody looks.
async function keepShowingExchanges() {
  if (!document.hidden) await showExchanges();
  showExchangesIn(shown.includes('"outcome":null') ? 250 : 1000);
}

function showExchangesIn(milliseconds) {
  clearTimeout(next);
  next = setTimeout(keepShowingExchanges, milliseconds);
}

// The beginning

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey();
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", () => underWay?.abort());
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
at("key").value = sessionStorage.getItem("key") ?? "";
if (at("key").value) useKey();
keepShowingExchanges();
