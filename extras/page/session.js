// A text that the model has read, and what the page asks about it.

class Session {
  constructor(model) {
    this.model = model;
    this.cache = model.make_cache();
    this.clear();
  }

  clear() {
    this.ids = [];
    this.start = 0; // index of the token that stands at position 0: more than 0 where the context was full
    this.probs = []; // of each token, as predicted from those before it; null for the first
    this.ranks = []; // 1: it was the likeliest
    this.next = null; // logits of the token after the last
  }

  // Make the text `ids`; what it has in common with the text so far is not read again. Returns where it
  // differs.
  set_ids(ids) {
    let same = 0;
    while (same < ids.length && this.ids[same] === ids[same]) same++;
    const fits = ids.length <= this.model.args.max_seq_len; // then nothing of it need be forgotten
    if (same <= this.start || (this.start && fits)) {
      this.clear();
      same = 0;
    }
    for (const list of [this.ids, this.probs, this.ranks]) list.length = same;
    this.next = same ? this.logits_at(same) : null;
    for (const id of ids.slice(same)) this.push(id);
    return same;
  }

  push(id) {
    if (this.next) {
      this.probs.push(softmax(this.next)[id]);
      this.ranks.push(1 + this.next.reduce((count, logit) => count + (logit > this.next[id]), 0));
    } else {
      this.probs.push(null);
      this.ranks.push(null);
    }
    this.ids.push(id);
    const context = this.model.args.max_seq_len;
    let first = this.ids.length - 1;
    if (this.ids.length - this.start > context) { // full: the newer half is read again from position 0
      this.start = this.ids.length - Math.ceil((context + 1) / 2);
      first = this.start;
    }
    for (let i = first; i < this.ids.length; i++) {
      this.next = this.model.decode_step(this.ids[i], this.cache, i - this.start);
    }
  }

  // The residual stream (C) of token i after `layer` layers; 0 is its embedding.
  residual(i, layer) {
    const { dim } = this.model.args;
    const [table, row] = layer
      ? [this.cache[layer - 1].x, i - this.start]
      : [this.model.weights["tok_embeddings.weight"], this.ids[i]];
    return table.subarray(row * dim, (row + 1) * dim);
  }

  // The logits from which token i was, or will be, drawn. null for the first, and for what the cache has
  // lost.
  logits_at(i) {
    return i > this.start ? this.model.logits(this.residual(i - 1, this.model.args.n_layers)) : null;
  }

  // For each layer, what the model would predict for token i after it: the likeliest ids and the rank of
  // the token.
  lens(i, count) {
    if (i <= this.start) return [];
    const layers = Array.from({ length: this.model.args.n_layers + 1 }, (_, layer) => layer);
    return layers.map((layer) => {
      const probs = softmax(this.model.logits(this.residual(i - 1, layer)));
      const ids = Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a]);
      const at = ids.indexOf(this.ids[i]); // -1 for a token that is not written yet
      const top = ids.slice(0, count).map((id) => ({ id, p: probs[id] }));
      return { top, rank: at + 1, p: at < 0 ? null : probs[this.ids[i]] };
    });
  }

  // {start, weights}: how much token i looks at each token from `start` to itself.
  attention(i, layer, head) {
    if (i < this.start || i >= this.ids.length) return { start: this.start, weights: new Float32Array() };
    const weights = this.model.attention_weights(this.cache[layer], head, i - this.start);
    return { start: this.start, weights };
  }

  // Heads that copy look from a token at what came after its earlier occurrences ("induction heads"; Olsson
  // et al. 2022, arXiv:2209.11895). The heads by how much of their attention goes there, on average over
  // the tokens that have occurred before; example: the token at which it is most.
  copy_heads() {
    const { n_layers, n_heads } = this.model.args;
    const places = []; // [token, the tokens after its earlier occurrences]
    for (let i = this.start; i < this.ids.length; i++) {
      const successors = [];
      for (let j = this.start; j < i - 1; j++) if (this.ids[j] === this.ids[i]) successors.push(j + 1);
      if (successors.length) places.push([i, successors]);
    }
    const heads = [];
    for (let layer = 0; layer < n_layers; layer++) {
      for (let head = 0; head < n_heads; head++) {
        const shares = places.map(([i, successors]) => {
          const { start, weights } = this.attention(i, layer, head);
          return successors.reduce((sum, j) => sum + weights[j - start], 0);
        });
        const example = shares.indexOf(shares.reduce((a, b) => Math.max(a, b), 0));
        const score = shares.reduce((a, b) => a + b, 0) / shares.length;
        if (!places.length) return [];
        heads.push({ layer, head, score, example: places[example][0], share: shares[example] });
      }
    }
    return heads.sort((a, b) => b.score - a.score);
  }
}

// What the worker answers. `which` is "story" or "text", the one under "Your text".
class Engine {
  load(config, base64) {
    this.model = new Transformer(config, read_weights(config, from_base64(base64)));
    this.sessions = {};
    for (const which of ["story", "text", "past"]) this.sessions[which] = new Session(this.model);
  }

  set_ids(which, ids) {
    return this.changed(which, this.sessions[which].set_ids(ids));
  }

  // Write the story: one token, and more until `milliseconds` have passed, one of stop_ids is drawn or the
  // story has `most` tokens. A message for each token would cost more time than the token.
  write(settings, seed, stop_ids, most, milliseconds) {
    const { story } = this.sessions;
    const from = story.ids.length;
    const end = performance.now() + milliseconds;
    do {
      const rows = distribution(story.next, settings);
      story.push(sample_next_token(rows, random_at(seed, story.ids.length)));
    } while (performance.now() < end && story.ids.length < most && !stop_ids.includes(story.ids.at(-1)));
    return this.changed("story", from);
  }

  // What is new in a text from index `from` on.
  changed(which, from) {
    const { ids, probs, ranks, start, next } = this.sessions[which];
    return { from, ids: ids.slice(from), probs: probs.slice(from), ranks: ranks.slice(from), start, next };
  }

  // A question about token i, as one of Session's methods answers it. Where the story no longer fits into
  // the context, its beginning is read once more, in a session of its own.
  ask(which, question, i, ...args) {
    const { start, ids } = this.sessions[which];
    if (start === 0 || !(i <= start)) return this.sessions[which][question](i, ...args);
    this.sessions.past.set_ids(ids.slice(0, start + 1));
    return this.sessions.past[question](i, ...args);
  }
}

if (typeof WorkerGlobalScope !== "undefined") {
  const engine = new Engine();
  self.onmessage = ({ data: { name, args } }) => self.postMessage(engine[name](...args));
}
