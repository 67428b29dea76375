// The two tokenizers of the course: sentencepiece's BPE (English) and a byte-level BPE (Chinese).
// tokenizer.py leaves both to libraries; here they are written out.

const encode_utf8 = (text) => new TextEncoder().encode(text);
const decode_utf8 = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes); // keeps a BOM

function check_text(text) {
  if (!text.isWellFormed()) throw new Error("the text holds half a surrogate pair, which is no character");
}

// Byte pair encoding: merge the pair of neighbours with the lowest rank, the leftmost of equals, until no
// pair has one. rank(left, right) is Infinity where nothing may merge. Changes the list of symbols and
// returns it.
function merge_pairs(symbols, rank) {
  const ranks = symbols.slice(1).map((right, i) => rank(symbols[i], right));
  for (;;) {
    let best = 0;
    for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
    if (!(ranks[best] < Infinity)) return symbols;
    symbols.splice(best, 2, symbols[best] + symbols[best + 1]);
    ranks.splice(best, 1);
    if (best < ranks.length) ranks[best] = rank(symbols[best], symbols[best + 1]);
    if (best > 0) ranks[best - 1] = rank(symbols[best - 1], symbols[best]);
  }
}

// What both tokenizers do in the same way. Each has encode(text), and bytes_of(id): what the id stands for.
class Tokenizer {
  constructor(data) {
    Object.assign(this, data); // pieces, bos_id, eos_id, and what only one of them needs
    this.id_of = new Map(this.pieces.map((piece, id) => [piece, id]));
  }

  decode(ids) {
    return decode_utf8(Uint8Array.from(ids.flatMap((id) => [...this.bytes_of(id)])));
  }

  // The ids that would make the last word of a text, which ends with the token `last`, longer: a word that
  // somebody typed is whole. Only where letters have two cases: such scripts have spaces between words.
  longer(last) {
    const has_case = (letter = "") => letter.toLowerCase() !== letter.toUpperCase();
    if (this.kind !== "sentencepiece" || !has_case(this.pieces[last]?.at(-1))) return [];
    return [...this.pieces.keys()].filter((id) => has_case(this.pieces[id][0]));
  }
}

// A sentencepiece model of type BPE. data: scores, kinds (a letter for each piece: n normal, b byte, c
// control, u unknown, x unused), and what it does to spaces: collapse_spaces, add_prefix.
class SentencePiece extends Tokenizer {
  constructor(data) {
    super(data);
    const of_kind = (kind) => [...this.id_of].filter(([, id]) => this.kinds[id] === kind);
    const normal = of_kind("n");
    this.bytes = new Map(of_kind("b"));
    this.id_of = new Map(normal);
    this.unk_id = this.kinds.indexOf("u");
    // No piece continues into the next word: then words are encoded one by one, which is quicker.
    this.splits = !normal.some(([piece]) => /[^▁]▁/.test(piece));
  }

  normalize(text) {
    if (this.collapse_spaces) text = text.replace(/^ +/, "").replace(/ {2,}/g, " ");
    if (this.add_prefix && text) text = " " + text;
    text = text.replaceAll(" ", "▁");
    return this.collapse_spaces ? text.replace(/▁+$/, "") : text;
  }

  encode(text) {
    check_text(text);
    const rank = (left, right) => {
      const id = this.id_of.get(left + right);
      return id === undefined ? Infinity : -this.scores[id];
    };
    const normalized = this.normalize(text);
    const words = this.splits ? normalized.match(/▁+[^▁]*|[^▁]+/g) || [] : [normalized];
    const ids = [];
    for (const symbol of words.flatMap((word) => merge_pairs([...word], rank))) {
      const id = this.id_of.get(symbol);
      if (id !== undefined) {
        ids.push(id);
      } else if (this.bytes.size) {
        for (const byte of encode_utf8(symbol)) ids.push(this.bytes.get(byte_piece(byte)));
      } else if (ids.at(-1) !== this.unk_id) {
        ids.push(this.unk_id); // one for all unknown characters in a row
      }
    }
    return ids;
  }

  is_special(id) {
    return this.kinds[id] === "c";
  }

  bytes_of(id) {
    const kind = this.kinds[id];
    if (kind === "b") return Uint8Array.of(parseInt(this.pieces[id].slice(3), 16));
    if (kind === "n") return encode_utf8(this.pieces[id].replaceAll("▁", " "));
    return encode_utf8(kind === "u" ? this.unk_surface : "");
  }

  decode(ids) {
    const text = super.decode(ids);
    return text.replace(this.collapse_spaces ? /^ +/ : this.add_prefix ? /^ / : "", "");
  }
}

const hex_byte = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
const byte_piece = (byte) => `<0x${hex_byte(byte)}>`;

// Words for byte-level BPE as GPT-2 cuts them. Rust's \s is White_Space, JavaScript's differs in two
// characters.
const SPACE = "\\p{White_Space}";
const WORDS = new RegExp(
  "'(?:[sdmt]|re|ve|ll)| ?\\p{L}+| ?\\p{N}+" +
    `| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`,
  "gu",
);

// Each byte as a letter: the printable ones of Latin-1 as themselves, the others from U+0100 on.
const BYTE_LETTERS = [];
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  BYTE_LETTERS.push(String.fromCharCode(printable ? byte : next++));
}
const LETTER_BYTES = new Map(BYTE_LETTERS.map((letter, byte) => [letter, byte]));

// A byte-level BPE as train_tokenizer.py makes it. data: merges ("left right", the first to merge first),
// special ({text: id}), nfkc (whether the text is normalised), digits (the characters that are words by
// themselves, as "[0-9]", or "").
class ByteLevel extends Tokenizer {
  constructor(data) {
    super(data);
    this.ranks = new Map(this.merges.map((merge, rank) => [merge, rank]));
    this.special_ids = new Set(Object.values(this.special));
    this.digits_pattern = new RegExp(this.digits ? `(${this.digits})` : "$^", "u");
  }

  // A text that spells a special token is text like any other.
  encode(text) {
    check_text(text);
    const rank = (left, right) => this.ranks.get(`${left} ${right}`) ?? Infinity;
    const parts = (this.nfkc ? text.normalize("NFKC") : text).split(this.digits_pattern);
    const words = parts.flatMap((part) => part.match(WORDS) || []);
    const letters = (word) => Array.from(encode_utf8(word), (byte) => BYTE_LETTERS[byte]);
    return words.flatMap((word) => merge_pairs(letters(word), rank).map((piece) => this.id_of.get(piece)));
  }

  // The ids of a chat, [{role, content}, ...], and the beginning of the answer, as tokenizer.py's
  // encode_chat.
  encode_chat(messages) {
    const message = ({ role, content }) => [
      this.chat_start_id, ...this.encode(`${role}\n${content}`), this.chat_end_id, ...this.encode("\n"),
    ];
    return [...messages.flatMap(message), this.chat_start_id, ...this.encode("assistant\n")];
  }

  is_special(id) {
    return this.special_ids.has(id);
  }

  bytes_of(id) {
    if (this.special_ids.has(id)) return new Uint8Array();
    return Uint8Array.from([...this.pieces[id]].map((letter) => LETTER_BYTES.get(letter)));
  }
}

function make_tokenizer(data) {
  return data.kind === "sentencepiece" ? new SentencePiece(data) : new ByteLevel(data);
}

