// The model of model.py, its tokenizers and its sampler in JavaScript, without any library.
//
// python -m extras.page puts this file into the page that it writes. There it runs twice: in the page
// itself, for the tokenizer and the sampler, and in a web worker, for the model, so that the page never
// waits for a token. The tests load it in Node. The names are those of model.py and tokenizer.py, and so are
// the letters:
//
//     T time   C dim   H query heads   K key/value heads   D head size   V vocabulary
//     S length of the KV cache
//
// One difference: model.py reads a prompt of T tokens at once; here every token is a step of its own.
// All numbers are float32 between two steps, and float64 within a sum.

"use strict";

// -------------------------------------------------------------------------------------------------------
// weights

const HALVES = new Float32Array(65536); // the value of each float16
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  HALVES[bits] = sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

function from_base64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // browsers since 2025
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// {name: Float32Array} from the float16 bytes that pack() in __main__.py wrote. config.weights lists [name,
// numbers].
function read_weights(config, bytes) {
  const halves = new Uint16Array(bytes.buffer);
  const weights = {};
  let at = 0;
  for (const [name, length] of config.weights) {
    weights[name] = new Float32Array(length);
    for (let i = 0; i < length; i++) weights[name][i] = HALVES[halves[at++]];
  }
  return weights;
}

// -------------------------------------------------------------------------------------------------------
// the model

// w (rows, columns) times x (columns) -> (rows). Here is nearly all of the time. Four sums side by side,
// since each addition would otherwise wait for the one before it.
function linear(w, x, rows) {
  const columns = x.length;
  const whole = columns - (columns % 4);
  const out = new Float32Array(rows);
  for (let i = 0, at = 0; i < rows; i++) {
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    let j = 0;
    for (; j < whole; j += 4, at += 4) {
      a += w[at] * x[j];
      b += w[at + 1] * x[j + 1];
      c += w[at + 2] * x[j + 2];
      d += w[at + 3] * x[j + 3];
    }
    for (; j < columns; j++, at++) a += w[at] * x[j];
    out[i] = a + b + (c + d);
  }
  return out;
}

function rms_norm(x, weight, eps) {
  let squares = 0;
  for (let i = 0; i < x.length; i++) squares += x[i] * x[i];
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) y[i] = x[i] * scale * weight[i];
  return y;
}

function softmax(x) {
  let largest = -Infinity;
  for (let i = 0; i < x.length; i++) largest = Math.max(largest, x[i]);
  const y = new Float32Array(x.length);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += y[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) y[i] /= sum;
  return y;
}

// cos and sin of the angle by which RoPE rotates pair i at position t, each (S, D / 2).
function precompute_freqs_cis(head_dim, end, theta) {
  const half = head_dim / 2;
  const angles = new Float32Array(end * half);
  for (let t = 0; t < end; t++) {
    for (let i = 0; i < half; i++) angles[t * half + i] = t * Math.fround(theta ** (-2 * i / head_dim));
  }
  return [angles.map(Math.cos), angles.map(Math.sin)];
}

class Transformer {
  constructor(config, weights) {
    this.args = config.model_args;
    this.weights = weights;
    this.head_dim = this.args.dim / this.args.n_heads;
    const { max_seq_len, rope_theta } = this.args;
    [this.freqs_cos, this.freqs_sin] = precompute_freqs_cis(this.head_dim, max_seq_len, rope_theta);
  }

  // For each layer, keys and values of max_seq_len positions, each (S, K * D). Generation needs no more.
  // What this page shows is computed from two more tables: the queries, for which keys the heads look at,
  // and the residual stream after the layer.
  make_cache() {
    const { dim, n_layers, n_heads, n_kv_heads, max_seq_len } = this.args;
    const table = (width) => new Float32Array(max_seq_len * width);
    const narrow = (dim / n_heads) * n_kv_heads;
    const layer = () => ({ q: table(dim), k: table(narrow), v: table(narrow), x: table(dim) });
    return Array.from({ length: n_layers }, layer);
  }

  // Rotate the pairs (x0, x1), (x2, x3), ... of every head, in place.
  apply_rotary_emb(x, pos) {
    const half = this.head_dim / 2;
    for (let i = 0; i < x.length; i += 2) {
      const angle = pos * half + (i / 2) % half;
      const [a, b] = [x[i], x[i + 1]];
      x[i] = a * this.freqs_cos[angle] - b * this.freqs_sin[angle];
      x[i + 1] = a * this.freqs_sin[angle] + b * this.freqs_cos[angle];
    }
    return x;
  }

  // How much query head `head` at position `pos` looks at each position up to there: softmax(q k^T /
  // sqrt(D)).
  attention_weights(layer_cache, head, pos) {
    const { n_heads, n_kv_heads, dim } = this.args;
    const D = this.head_dim;
    const width = D * n_kv_heads;
    const first = D * Math.floor((head * n_kv_heads) / n_heads); // of the keys that this head shares
    const { q, k } = layer_cache;
    const query = pos * dim + head * D;
    const scores = new Float32Array(pos + 1);
    for (let t = 0; t <= pos; t++) {
      const key = t * width + first;
      let sum = 0;
      for (let i = 0; i < D; i++) sum += q[query + i] * k[key + i];
      scores[t] = sum / Math.sqrt(D);
    }
    return softmax(scores);
  }

  // x (C), normalised -> (C). Writes the query, key and value of x into the cache at `pos`.
  attention(x, name, layer_cache, pos) {
    const { n_heads, n_kv_heads, dim } = this.args;
    const D = this.head_dim;
    const width = D * n_kv_heads;
    const project = (part, rows) => linear(this.weights[`${name}.${part}.weight`], x, rows);
    const { q, k, v } = layer_cache;
    q.set(this.apply_rotary_emb(project("wq", dim), pos), pos * dim);
    k.set(this.apply_rotary_emb(project("wk", width), pos), pos * width);
    v.set(project("wv", width), pos * width);
    const y = new Float32Array(dim);
    for (let head = 0; head < n_heads; head++) {
      const weights = this.attention_weights(layer_cache, head, pos);
      const first = D * Math.floor((head * n_kv_heads) / n_heads);
      for (let t = 0; t <= pos; t++) {
        const value = t * width + first;
        for (let i = 0; i < D; i++) y[head * D + i] += weights[t] * v[value + i];
      }
    }
    return linear(this.weights[`${name}.wo.weight`], y, dim);
  }

  // SwiGLU: w2(silu(w1 x) * w3 x). (C) -> (C)
  feed_forward(x, name) {
    const { dim, hidden_dim } = this.args;
    const gate = linear(this.weights[`${name}.w1.weight`], x, hidden_dim);
    const up = linear(this.weights[`${name}.w3.weight`], x, hidden_dim);
    const hidden = gate.map((value, i) => (value / (1 + Math.exp(-value))) * up[i]);
    return linear(this.weights[`${name}.w2.weight`], hidden, dim);
  }

  // The logits (V) of the token after `token`, which stands at position `pos`; the cache holds what is
  // before.
  decode_step(token, cache, pos) {
    const { dim, n_layers, norm_eps } = this.args;
    const x = this.weights["tok_embeddings.weight"].slice(token * dim, (token + 1) * dim); // residual stream
    for (let i = 0; i < n_layers; i++) {
      const name = `layers.${i}`;
      const attended = rms_norm(x, this.weights[`${name}.attention_norm.weight`], norm_eps);
      this.attention(attended, `${name}.attention`, cache[i], pos).forEach((value, j) => (x[j] += value));
      const processed = rms_norm(x, this.weights[`${name}.ffn_norm.weight`], norm_eps);
      this.feed_forward(processed, `${name}.feed_forward`).forEach((value, j) => (x[j] += value));
      cache[i].x.set(x, pos * dim);
    }
    return this.logits(x);
  }

  // The output projection of the normalised residual stream: (C) -> (V). After the last layer it is the
  // model's prediction; after an earlier one, what the model would say if it ended there (the "logit
  // lens").
  logits(x) {
    const output = this.weights["output.weight"] || this.weights["tok_embeddings.weight"]; // tied
    return linear(output, rms_norm(x, this.weights["norm.weight"], this.args.norm_eps), this.args.vocab_size);
  }
}

// -------------------------------------------------------------------------------------------------------
// the sampler

// The tokens, the likeliest first: [{id, before, after}], where `before` is the model's probability and
// `after` the one from which sample_next_token draws, 0 where the token is cut off, by top_k, by top_p or as
// one of `without`.
function distribution(logits, { temperature, top_k, top_p, without = [] }) {
  const before = softmax(logits);
  const ids = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]); // equals stay in their order
  const cut = new Set(without);
  const kept = ids.filter((id) => !cut.has(id)).slice(0, temperature === 0 ? 1 : top_k || ids.length);
  const after = softmax(kept.map((id) => logits[id] / (temperature || 1)));
  let sum = 0;
  let total = 0;
  for (let i = 0; i < after.length; i++) {
    const surplus = top_p < 1 && sum >= top_p; // the ones before it are enough
    sum += after[i];
    if (surplus) after[i] = 0;
    total += after[i];
  }
  const after_of = new Map(kept.map((id, i) => [id, after[i] / total]));
  return ids.map((id) => ({ id, before: before[id], after: after_of.get(id) ?? 0 }));
}

// One id of a distribution; u is a random number from 0 to 1.
function sample_next_token(rows, u) {
  let sum = 0;
  for (const { id, after } of rows) {
    sum += after;
    if (u < sum) return id;
  }
  return rows[0].id; // the sum of all was a rounding error below u
}

// The random number of a position, so that a step taken back and made again draws the same token. The bits
// are mixed as in MurmurHash3's last lines (Appleby, public domain).
function random_at(seed, position) {
  let bits = Math.imul(seed, 0x9e3779b1) ^ Math.imul(position + 1, 0x85ebca77);
  for (const factor of [0x85ebca6b, 0xc2b2ae35]) {
    bits ^= bits >>> 15;
    bits = Math.imul(bits, factor);
  }
  bits ^= bits >>> 16;
  return (bits >>> 0) / 2 ** 32;
}
