// The page itself: its state, its engine and the buttons that write. chips.js shows the text, and
// panels.js what is inside the model.
//
// A text is a list of ids in `state`. The engine (session.js), in its worker, reads it and says for
// each token what the model thought of it; all that is shown is made from these answers. Whatever comes
// from a model or from a keyboard enters the document by textContent: "<img onerror=...>" is a text like
// any other.

"use strict";

const $ = (id) => document.getElementById(id);
const config = JSON.parse($("config").textContent);
const tok = make_tokenizer(config.tokenizer);
const ends = [tok.bos_id, tok.eos_id, tok.chat_start_id, tok.chat_end_id, ...config.stop_ids];
const stop_ids = new Set(ends.filter((id) => id >= 0));
const TOP_K = [1, 2, 3, 5, 10, 20, 50, 100, 300, 0]; // of the slider; 0 is all

const reads_chinese = navigator.language.startsWith("zh") || /[\u4e00-\u9fff]/.test(config.prompt);

const state = {
  language: reads_chinese ? "zh" : "en",
  ids: [],
  probs: [], // of each token, null for the first
  ranks: [],
  start: 0, // the first token that is still in the context
  next: null, // logits of the token after the last
  typed: 0, // how many tokens of a story were typed
  messages: [], // of a chat
  playing: false,
  speed: null, // tokens per second, while writing at full speed
  hovered: null, // index of the token under the pointer
  selected: null, // index of the token that was clicked
  tab: "next",
  version: 0, // changes with the text
};

// -------------------------------------------------------------------------------------------------------
// words

function say(key, values = {}) {
  return TEXT[state.language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const number = (value, digits = 0) =>
  value.toLocaleString(state.language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

function percent(p) {
  if (p === 0) return "0%";
  return p < 0.001 ? "<0.1%" : `${number(100 * p, p < 0.1 ? 1 : 0)}%`;
}

// A token outside of its text: spaces and line ends made visible, parts of characters as bytes.
function token_name(id) {
  const bytes = tok.bytes_of(id);
  if (tok.is_special(id)) return tok.pieces[id];
  if (whole_characters(bytes) < bytes.length || decode_utf8(bytes).includes("\ufffd")) return hex(bytes);
  return visible(decode_utf8(bytes)).replaceAll(" ", "·");
}

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
const hex = (bytes) => Array.from(bytes, hex_byte).join(" ");

// How many of these bytes are whole UTF-8 characters; the rest begins one.
function whole_characters(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back];
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 0;
    if (length > back) return bytes.length - back;
    if (length || byte < 0x80) break;
  }
  return bytes.length;
}

function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

const token_node = (id) => element("span", "token", token_name(id));

function show_words() {
  document.documentElement.lang = state.language;
  document.title = say("title");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", say(node.dataset.label));
  }
  const { n_layers, n_heads, vocab_size } = config.model_args;
  const values = { parameters: number(config.parameters), layers: n_layers, heads: n_heads };
  $("facts").textContent = say("facts", { ...values, vocab: number(vocab_size) });
  $("language").textContent = say("other_language");
  $("language").lang = state.language === "zh" ? "en" : "zh";
  $("prompt_label").textContent = say(config.chat ? "message" : "prompt");
  chips.splice(0).forEach(remove_chip); // the speakers of a chat are words, too
  $("chips").replaceChildren();
  state.version++;
  show();
}

// -------------------------------------------------------------------------------------------------------
// the engine: in a worker, or in the page itself where the browser lets no file start one

function open_worker() {
  const code = new Blob([$("worker").textContent], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(code));
  const waiting = [];
  worker.onmessage = ({ data }) => waiting.shift().resolve(data);
  worker.onerror = (event) => {
    event.preventDefault();
    waiting.splice(0).forEach(({ reject }) => reject(new Error(event.message)));
  };
  return (name, ...args) =>
    new Promise((resolve, reject) => {
      waiting.push({ resolve, reject });
      worker.postMessage({ name, args });
    });
}

function open_here() {
  const engine = new Engine();
  return async (name, ...args) => {
    await sleep(0); // let the page draw and listen between two calls
    return engine[name](...args);
  };
}

let call; // call("set_ids", "story", ids) -> a promise of Engine's answer

async function open_engine() {
  for (const open of [open_worker, open_here]) {
    try {
      call = open();
      await call("load", config, $("weights").textContent);
      return;
    } catch (error) {
      if (open === open_here) throw error;
    }
  }
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// What changes the text happens one after the other.
let queue = Promise.resolve();
function enqueue(action) {
  queue = queue.then(action);
  return queue;
}

// -------------------------------------------------------------------------------------------------------
// writing

const read_story = async (ids) => change_story(await call("set_ids", "story", ids));

function change_story({ from, ids, probs, ranks, start, next }) {
  chips.splice(from).reverse().forEach(remove_chip);
  state.ids = [...state.ids.slice(0, from), ...ids];
  state.probs = [...state.probs.slice(0, from), ...probs];
  state.ranks = [...state.ranks.slice(0, from), ...ranks];
  const length = state.ids.length;
  Object.assign(state, { start, next, typed: Math.min(state.typed, length), version: state.version + 1 });
  if (state.selected >= length) state.selected = null;
  if (state.hovered >= length) state.hovered = null;
  show();
}

// What token i is drawn with.
const settings = (i = state.ids.length) => ({
  temperature: Number($("temperature").value),
  top_k: TOP_K[$("top_k").value],
  top_p: Number($("top_p").value),
  without: i === state.typed && !config.chat ? tok.longer(state.ids[i - 1]) : [],
});

// A story ends with BOS, which would begin the next one, or EOS; an answer also where the context is full.
function has_ended() {
  if (state.ids.length === 0) return true;
  const last = state.ids.at(-1);
  if (config.chat) return stop_ids.has(last) || state.ids.length >= config.model_args.max_seq_len;
  return stop_ids.has(last) && state.ids.length > Math.max(1, state.typed);
}

async function step(milliseconds = 0) {
  if (has_ended() || !state.next) return pause();
  const most = config.chat ? config.model_args.max_seq_len : Infinity;
  const seed = Number($("seed").value);
  change_story(await call("write", settings(), seed, [...stop_ids], most, milliseconds));
}

function pause() {
  state.playing = false;
  show();
}

async function play() {
  state.playing = true;
  state.selected = null;
  while (state.playing) {
    const [began, length] = [performance.now(), state.ids.length];
    const full = $("speed").value === "0";
    const several = () => full && state.ids.length > state.typed; // for each picture, at full speed
    await enqueue(() => step(several() ? 50 : 0));
    const seconds = (performance.now() - began) / 1000;
    if (state.playing) state.speed = full ? (state.ids.length - length) / seconds : null;
    if (!full) await sleep(Math.max(0, $("speed").value - 1000 * seconds));
  }
}

// A token instead of what the model drew, or would have drawn, at position i.
async function take(id, i) {
  const instead = i < state.ids.length;
  state.selected = null;
  await enqueue(() => read_story([...state.ids.slice(0, i), id]));
  if (instead && !state.playing) play();
}

function begin_story() {
  pause();
  return enqueue(async () => {
    state.messages = [];
    state.selected = null;
    const ids = config.chat ? [] : [tok.bos_id, ...tok.encode($("prompt").value)].filter((id) => id >= 0);
    state.typed = ids.length;
    await read_story(ids);
  });
}

// After the end of a story: another one, with the next seed.
async function begin_another() {
  $("seed").value = Number($("seed").value) + 1;
  await begin_story();
  await play();
}

// The conversation so far and a new message, as sample.py's Chat: the oldest turns are dropped where they
// do not fit into the context together with an answer.
async function send() {
  const content = $("prompt").value.trim();
  if (state.messages.length) {
    state.messages.push({ role: "assistant", content: tok.decode(state.ids.slice(state.typed)) });
  }
  state.messages.push({ role: "user", content });
  $("prompt").value = "";
  const context = config.model_args.max_seq_len;
  const limit = context - Math.min(256, Math.floor(context / 2));
  const opening = config.system ? [{ role: "system", content: config.system }] : [];
  let ids = tok.encode_chat([...opening, ...state.messages]);
  while (ids.length > limit && state.messages.length > 1) {
    state.messages.splice(0, 2);
    ids = tok.encode_chat([...opening, ...state.messages]);
  }
  ids = ids.slice(-limit);
  state.typed = ids.length;
  await enqueue(() => read_story(ids));
  await play();
}

const has_message = () => config.chat && $("prompt").value.trim() !== "" && !state.playing;

function well_formed(field) {
  field.setCustomValidity(field.value.isWellFormed() ? "" : say("bad_text"));
  return field.reportValidity();
}

// -------------------------------------------------------------------------------------------------------
// what is shown

function show_controls() {
  const ended = has_ended();
  const write = config.chat ? "resume" : ended && state.ids.length ? "another" : "play";
  $("play").textContent = say(state.playing ? "pause" : has_message() ? "send" : write);
  $("play").disabled = !state.playing && !has_message() && ended && write !== "another";
  $("step").disabled = ended;
  $("back").disabled = state.ids.length < 2;
  const values = { count: number(state.ids.length), speed: state.speed && number(state.speed) };
  const piece = ended && state.ids.length ? tok.pieces[state.ids.at(-1)] : "";
  const status = piece ? "ended" : state.speed ? "status_speed" : "status";
  $("status").textContent = say(status, { ...values, piece });
}

// Everything that depends on the state is drawn again, at most once for each picture of the screen.
let drawing = false;
function show() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    show_chips();
    show_controls();
    show_detail();
    show_panel();
  });
}
