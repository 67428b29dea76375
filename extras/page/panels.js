// The four panels, what happens when something is pressed, and the start.

"use strict";

const TABS = ["next", "look", "layers", "text"];
const BARS = 10; // tokens that have a bar

// -------------------------------------------------------------------------------------------------------
// "You are the sampler", and the game of guessing the next token: the likeliest tokens are shown by their
// names, without probabilities, until one is clicked

const guess = { version: -1, id: null, likeliest: null, right: 0, all: 0 }; // version: of the text
const guessing = () => guess.version === state.version && state.selected === null;

async function begin_guess() {
  pause();
  state.selected = null;
  if (guessing()) await enqueue(() => step()); // the model goes on by itself
  Object.assign(guess, { version: state.version, id: null });
  show();
}

function click_bar(id, i) {
  if (!guessing() || guess.id !== null) return take(id, i);
  guess.id = id;
  guess.all++;
  if (id === guess.likeliest) guess.right++;
  show();
}

let instead = { version: -1, i: -1, logits: null }; // for the selected token

async function logits_to_show() {
  const i = state.selected;
  if (i === null) return state.next;
  const { version } = state;
  if (instead.version !== version || instead.i !== i) {
    instead = { version, i, logits: await call("ask", "story", "logits_at", i) };
  }
  return instead.logits;
}

async function show_next() {
  const i = state.selected ?? state.ids.length;
  const logits = await logits_to_show();
  if (i !== (state.selected ?? state.ids.length)) return; // it took a while, and the page shows another
  for (const name of ["temperature", "top_k", "top_p"]) {
    const value = settings()[name];
    const text = name === "top_k" ? value || say("all") : value.toFixed(2);
    $(name).nextElementSibling.textContent = text;
    $(name).setAttribute("aria-valuetext", text);
  }
  const message = !logits && say(i && i < state.ids.length ? "lost" : "no_logits");
  const rows = logits ? distribution(logits, settings(i)) : [];
  const shown = rows.filter(({ id }, rank) => rank < BARS || id === state.ids[i] || is_guess(id));
  show_guess(rows);
  while ($("bars").children.length > shown.length) $("bars").lastChild.remove();
  while ($("bars").children.length < shown.length) $("bars").append(make_bar());
  const hidden = guessing() && guess.id === null;
  const names = shown.map(({ id }) => ({ id })).sort((a, b) => (token_name(a.id) < token_name(b.id) ? -1 : 1));
  (hidden ? names : shown).forEach((row, rank) => fill_bar($("bars").children[rank], row, i));
  const others = rows.filter((row) => !shown.includes(row));
  const sum = (key) => percent(others.reduce((total, row) => total + row[key], 0));
  const values = { count: number(others.length), before: sum("before"), after: sum("after") };
  $("rest").textContent = message || say("rest", values);
}

const is_guess = (id) => guessing() && id === guess.id;

function show_guess(rows) {
  $("guess").textContent = say(guessing() ? "guess_again" : "guess");
  $("guess").disabled = has_ended();
  if (!guessing()) {
    $("next_help").textContent = say(state.selected === null ? "next_help" : "instead_help");
  } else if (guess.id === null) {
    guess.likeliest = rows[0].id;
    $("next_help").textContent = say("guess_help");
  } else {
    const rank = rows.findIndex(({ id }) => id === guess.id);
    const { before, after } = rows[rank];
    const values = { p: percent(after || before), rank: rank + 1, right: guess.right, all: guess.all };
    $("next_help").textContent = say("guessed", values);
  }
}

// The bars stay in the document, so that their lengths move when the sliders do.
function make_bar() {
  const bar = element("button", "bar");
  const track = element("span", "track");
  track.append(element("i", "before"), element("i", "after"));
  bar.append(element("span", "token"), track, element("span", "percent"));
  bar.addEventListener("click", () => click_bar(Number(bar.dataset.id), Number(bar.dataset.i)));
  return bar;
}

// Without probabilities, a bar is a token to guess.
function fill_bar(bar, { id, before, after }, i) {
  const hidden = before === undefined;
  const [token, track, share] = bar.children;
  token.textContent = token_name(id);
  track.children[0].style.setProperty("--p", before ?? 0);
  track.children[1].style.setProperty("--p", after ?? 0);
  share.textContent = hidden ? "?" : percent(after || before);
  bar.className = `bar${after === 0 ? " cut" : ""}${id === state.ids[i] || is_guess(id) ? " chosen" : ""}`;
  const label = `${token_name(id)}: ${percent(before ?? 0)}, ${after === 0 ? say("cut") : percent(after)}`;
  bar.setAttribute("aria-label", hidden ? token_name(id) : label);
  Object.assign(bar.dataset, { id, i });
}

// -------------------------------------------------------------------------------------------------------
// "Where it looks"

async function show_look() {
  const layer = Number($("layer").value);
  const head = Number($("head").value);
  const i = state.hovered ?? state.selected ?? state.ids.length - 1;
  const { version } = state;
  if (i < 0) return;
  const { start, weights } = await call("ask", "story", "attention", i, layer, head);
  if (version !== state.version || i !== (state.hovered ?? state.selected ?? state.ids.length - 1)) return;
  chips.forEach((chip, j) => tint(chip, Math.sqrt(weights[j - start] || 0)));
  const names = { layer: layer + 1, head: head + 1 };
  $("look_from").replaceChildren(say("look_from", names), " ", token_node(state.ids[i]), " ", say("look_at"));
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 5);
  const worth = order.filter((j, rank) => rank === 0 || weights[j] >= 0.01);
  const rows = worth.map((j) => list_row(start + j, percent(weights[j])));
  $("looked_at").replaceChildren(...(weights.length ? rows : [element("li", "", say("lost"))]));
}

// A token between its neighbours.
function list_row(j, text, ids = state.ids) {
  const row = element("li");
  const bytes = (from, to) => ids.slice(Math.max(0, from), to).flatMap((id) => [...tok.bytes_of(id)]);
  const around = (from, to) => visible(decode_utf8(Uint8Array.from(bytes(from, to))));
  row.append(element("span", "", text), ` ${around(j - 4, j)}`, token_node(ids[j]), around(j + 1, j + 4));
  return row;
}

async function find_heads() {
  const heads = (await call("ask", "story", "copy_heads")).slice(0, 3);
  const buttons = heads.map(({ layer, head, score, share, example }) => {
    const values = { layer: layer + 1, head: head + 1, score: percent(score), share: percent(share) };
    const button = element("button", "", `${say("found", values)} `);
    button.append(token_node(state.ids[example]));
    button.addEventListener("click", () => {
      $("layer").value = layer;
      $("head").value = head;
      select(example);
      chips[example].node.scrollIntoView({ block: "end" }); // what it looks at stands before it
    });
    return button;
  });
  $("heads").replaceChildren(...(heads.length ? buttons : [element("p", "", say("none_found"))]));
  buttons[0]?.click();
}

// -------------------------------------------------------------------------------------------------------
// "Layer by layer"

async function show_layers() {
  const i = state.hovered ?? state.selected ?? state.ids.length;
  const { version } = state;
  const layers = await call("ask", "story", "lens", i, 3);
  if (version !== state.version || i !== (state.hovered ?? state.selected ?? state.ids.length)) return;
  const known = i < state.ids.length;
  const names = known ? [say("layers_for"), " ", token_node(state.ids[i])] : [say("layers_next")];
  $("layers_for").replaceChildren(...(layers.length ? names : [say(known && i ? "lost" : "no_logits")]));
  const rows = layers.map(({ top, rank, p }, layer) => {
    const row = element("tr");
    row.append(element("th", "", say(layer ? "layer_number" : "embedding", { layer })));
    for (const one of top) row.append(layer_cell(one.id, one.p, known && one.id === state.ids[i]));
    if (known) row.append(element("td", "rank", `${percent(p)} #${number(rank)}`));
    return row;
  });
  const head = element("tr");
  const likeliest = element("th", "", say("likeliest"));
  likeliest.colSpan = 3;
  head.append(element("th"), likeliest, ...(known ? [element("th", "", token_name(state.ids[i]))] : []));
  const [top, body] = [element("thead"), element("tbody")];
  top.append(head);
  body.append(...rows);
  $("layers").replaceChildren(...(rows.length ? [top, body] : []));
}

function layer_cell(id, p, actual) {
  const cell = element("td", actual ? "actual" : "");
  cell.style.setProperty("--heat", p);
  cell.append(element("span", "", token_name(id)), element("small", "", percent(p)));
  return cell;
}

// -------------------------------------------------------------------------------------------------------
// "Your text"

const MOST = 2048; // tokens that are measured
let measuring = 0; // a number for each measurement; another one stops it

async function measure() {
  const mine = ++measuring;
  if (!well_formed($("text"))) return;
  const text = $("text").value;
  const encode = (value) => tok.encode(value);
  const ids = [tok.bos_id, ...encode(text)].filter((id) => id >= 0);
  const all = Math.min(ids.length, MOST);
  const first = tok.bos_id >= 0 ? 1 : 0;
  const found = { probs: [], ranks: [] };
  await call("set_ids", "text", []); // nothing is left of an earlier text
  for (let done = 0; done < all; ) {
    done = Math.min(all, done + 32);
    const { from, probs, ranks } = await call("set_ids", "text", ids.slice(0, done));
    if (mine !== measuring) return;
    found.probs = [...found.probs.slice(0, from), ...probs];
    found.ranks = [...found.ranks.slice(0, from), ...ranks];
    $("progress").textContent = done < all ? say("progress", { done: number(done), all: number(all) }) : "";
  }
  if (all < ids.length) $("progress").textContent = say("cut_off", { count: number(all) });
  show_measured(ids.slice(0, all), found, first);
}

function show_measured(ids, { probs, ranks }, first) {
  const known = Array.from(ids.keys()).filter((i) => i >= first && probs[i] !== null);
  const bits = known.reduce((sum, i) => sum + bits_of(probs[i]), 0);
  const bytes = ids.reduce((sum, id) => sum + tok.bytes_of(id).length, 0) - (tok.add_prefix ? 1 : 0);
  const sums = {
    tokens: number(ids.length - first),
    bytes: number(bytes),
    loss: number((bits * Math.LN2) / Math.max(1, known.length), 3),
    bits_per_byte: number(bits / Math.max(1, bytes), 3),
  };
  const cells = Object.entries(sums).map(([key, value]) => {
    const cell = element("div");
    cell.append(element("dt", "", say(key)), element("dd", "", value));
    return cell;
  });
  $("sums").replaceChildren(...cells);
  const values = (i) => ({ bits: number(bits_of(probs[i]), 1), rank: number(ranks[i]) });
  let pending = [];
  const tinted = ids.slice(first).flatMap((id, j) => {
    const chip = make_chip(id, pending);
    ({ pending } = chip);
    tint(chip, heat_of(probs[j + first]));
    if (probs[j + first] !== null) chip.node.title = say("place", values(j + first));
    return chip.nodes;
  });
  $("text_chips").replaceChildren(...tinted);
  $("text_chips").setAttribute("aria-label", say("text_label"));
  const places = known.sort((a, b) => probs[a] - probs[b]).slice(0, 5);
  $("places").replaceChildren(...places.map((i) => list_row(i, say("place", values(i)), ids)));
  $("places_title").hidden = !places.length;
}

// -------------------------------------------------------------------------------------------------------
// what is pressed

function show_panel() {
  const looks = state.tab === "look";
  if (!looks) chips.forEach((chip, i) => tint(chip, heat_of(state.probs[i])));
  $("legend_low").textContent = say(looks ? "low_attention" : "low_surprise");
  $("legend_high").textContent = say(looks ? "high_attention" : "high_surprise");
  if (call) ({ next: show_next, look: show_look, layers: show_layers, text: () => {} })[state.tab]();
}

function open_tab(name) {
  state.tab = name;
  for (const tab of TABS) {
    $(`tab_${tab}`).setAttribute("aria-selected", tab === name);
    $(`tab_${tab}`).tabIndex = tab === name ? 0 : -1;
    $(`panel_${tab}`).hidden = tab !== name;
  }
  show();
}

function select(i) {
  pause();
  state.selected = i;
  state.hovered = null;
  chips[i]?.node.scrollIntoView({ block: "nearest" });
  show();
}

// The position among `count` that an arrow key moves to; null for other keys.
function moved(key, at, count) {
  const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1 };
  const all = { ...to, Home: 0, End: count - 1 };
  return key in all ? Math.max(0, Math.min(count - 1, all[key])) : null;
}

function listen_to_chips() {
  const index = (event) => chips.findIndex(({ node }) => node === event.target);
  const hover = (i) => {
    const hovered = i < 0 ? null : i;
    if (hovered === state.hovered) return;
    state.hovered = hovered;
    show();
  };
  $("chips").addEventListener("pointerover", (event) => event.pointerType === "mouse" && hover(index(event)));
  $("chips").addEventListener("pointerleave", () => hover(-1));
  $("chips").addEventListener("click", (event) => {
    const i = index(event);
    if (i < 0 || i === state.selected) state.selected = null;
    else select(i);
    show();
  });
  $("chips").addEventListener("keydown", (event) => {
    if (event.key === "Escape") state.selected = null;
    const to = moved(event.key, state.selected ?? chips.length, chips.length);
    if (to === null || !chips.length) return show();
    event.preventDefault();
    select(to);
  });
}

function listen() {
  $("play").addEventListener("click", () => {
    if (state.playing) pause();
    else if (has_message()) well_formed($("prompt")) && send();
    else if (has_ended()) begin_another();
    else play();
  });
  $("step").addEventListener("click", () => (pause(), (state.selected = null), enqueue(() => step())));
  $("back").addEventListener("click", () => (pause(), enqueue(() => read_story(state.ids.slice(0, -1)))));
  $("restart").addEventListener("click", begin_story);
  let timer;
  $("prompt").addEventListener("input", () => {
    clearTimeout(timer);
    if (config.chat) return show();
    timer = setTimeout(() => well_formed($("prompt")) && begin_story(), 200);
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || !has_message()) return;
    event.preventDefault();
    $("play").click();
  });
  for (const id of ["temperature", "top_k", "top_p", "layer", "head"]) $(id).addEventListener("input", show);
  $("special").addEventListener("change", (event) => {
    $("chips").classList.toggle("show_special", event.target.checked);
  });
  $("guess").addEventListener("click", begin_guess);
  $("find").addEventListener("click", find_heads);
  $("measure").addEventListener("click", measure);
  $("language").addEventListener("click", () => {
    state.language = state.language === "zh" ? "en" : "zh";
    show_words();
  });
  TABS.forEach((name, i) => {
    $(`tab_${name}`).addEventListener("click", () => open_tab(name));
    $(`tab_${name}`).addEventListener("keydown", (event) => {
      const to = moved(event.key, i, TABS.length);
      if (to === null) return;
      event.preventDefault();
      open_tab(TABS[to]);
      $(`tab_${TABS[to]}`).focus();
    });
  });
  listen_to_chips();
}

async function start() {
  for (const [id, count] of [["layer", config.model_args.n_layers], ["head", config.model_args.n_heads]]) {
    for (let i = 0; i < count; i++) $(id).append(new Option(i + 1, i));
  }
  if (config.chat) {
    $("write").prepend($("chips"), document.querySelector(".legend")); // what is typed stands below
    $("special_row").hidden = false;
    $("lead").hidden = true;
  } else {
    $("prompt").value = config.prompt;
  }
  show_words();
  open_tab("next");
  $("status").textContent = say("loading");
  listen();
  await open_engine();
  await begin_story();
  document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds since it was opened
}

start();
