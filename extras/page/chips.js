// The text as chips, one for each token, and what is known of the token under the pointer.

const chips = []; // for each token that is shown {node, nodes, pending bytes, turn}

function remove_chip({ nodes, turn }) {
  for (const node of nodes) node.remove();
  if (turn && !turn.node.querySelector(".chip")) turn.node.remove();
}

// In a chat, <|im_start|> begins a turn, and the text up to the first line end is its role.
function turn_of(id, before) {
  if (!config.chat) return null;
  if (id !== tok.chat_start_id) return before?.turn;
  const turn = { node: element("div", "turn"), who: element("div", "who"), role: null, ids: [] };
  turn.node.append(turn.who);
  $("chips").append(turn.node);
  return turn;
}

// A token as a chip: {node, nodes, pending}. A character of several bytes may be spread over several
// tokens: all but the last are shown as a dot, and their bytes are `pending` until then.
function make_chip(id, pending) {
  const special = tok.is_special(id);
  const bytes = [...pending, ...tok.bytes_of(id)];
  const whole = special ? 0 : whole_characters(bytes);
  const text = decode_utf8(Uint8Array.from(bytes.slice(0, whole)));
  const part = !special && !text; // of a character that a later token completes
  const kind = special ? " special" : part ? " bytes" : "";
  const space = /^ +(?=[^ ])/.exec(text)?.[0] ?? ""; // part of the token; it looks better before the chip
  const shown = special ? tok.pieces[id] : part ? "·" : visible(text.slice(space.length));
  const node = element("span", `chip${kind}${/^\n+$/.test(text) ? " newline" : ""}`, shown);
  const breaks = Array.from(text.matchAll("\n"), () => element("br"));
  return { node, nodes: [document.createTextNode(space), node, ...breaks], pending: bytes.slice(whole) };
}

function add_chip(id, before) {
  const chip = make_chip(id, before?.pending || []);
  chip.node.setAttribute("role", "option");
  chip.node.id = `chip_${chips.length}`;
  chip.turn = turn_of(id, before);
  if (chip.turn) in_turn(chip.turn, id, chip);
  (chip.turn ? chip.turn.node : $("chips")).append(...chip.nodes);
  return chip;
}

// Special tokens and the role belong to the template, and are shown on request.
function in_turn(turn, id, chip) {
  const head = turn.role === null;
  if (head || tok.is_special(id) || turn.ended) {
    chip.node.classList.add("template");
    chip.nodes = [chip.node];
  }
  if (head) {
    turn.ids.push(id);
    const role = tok.decode(turn.ids);
    if (role.endsWith("\n")) {
      turn.role = role.trim();
      const known = TEXT[state.language][`who_${turn.role}`]; // a model may make up a role
      if (known) turn.node.classList.add(turn.role);
      turn.who.textContent = known || turn.role;
    }
  } else if (turn.role === "assistant" && !turn.ended) {
    chip.node.classList.add("drawn");
  }
  turn.ended = id === tok.chat_end_id;
}

function show_chips() {
  const box = $("chips");
  const at_end = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  for (let i = chips.length; i < state.ids.length; i++) {
    chips.push(add_chip(state.ids[i], chips.at(-1)));
    if (!config.chat && i >= state.typed) chips[i].node.classList.add("drawn");
  }
  box.querySelector(".empty")?.remove();
  if (!chips.length) box.append(element("span", "empty", say(config.chat ? "empty_chat" : "empty_story")));
  if (at_end && state.playing) box.scrollTop = box.scrollHeight;
  chips.forEach((chip, i) => {
    const selected = i === state.selected;
    if (chip.selected !== selected) chip.node.setAttribute("aria-selected", selected);
    chip.selected = selected;
  });
  if (state.selected === null) box.removeAttribute("aria-activedescendant");
  else box.setAttribute("aria-activedescendant", chips[state.selected].node.id);
}

function tint(chip, heat) {
  if (chip.heat === heat) return; // the browser would compute its style again
  chip.heat = heat;
  chip.node.style.setProperty("--heat", heat);
}

const bits_of = (p) => (p === null ? 0 : -Math.log2(Math.max(p, 1e-30)));
const heat_of = (p) => Math.min(1, bits_of(p) / 10);

function show_detail() {
  const i = state.hovered ?? state.selected;
  const box = $("detail");
  if (i === null || i >= chips.length) return box.replaceChildren(element("p", "soft", say("detail")));
  const id = state.ids[i];
  const bytes = tok.bytes_of(id);
  const line = element("div");
  line.append(element("b", "", token_name(id)), " ");
  if (tok.is_special(id)) line.append(element("code", "", say("detail_special", { id })));
  else line.append(element("code", "", `${say("detail_id", { id })} ${hex(bytes)}`));
  const p = state.probs[i];
  const vocab = number(config.model_args.vocab_size);
  const values = { p: percent(p), rank: state.ranks[i], vocab, bits: number(bits_of(p), 1) };
  const said = say(p === null ? "detail_first" : "detail_p", values);
  const who = say(chips[i].node.classList.contains("drawn") ? "detail_drawn" : "detail_prompt");
  box.replaceChildren(line, element("div", "", p === null ? said : said + who));
}
