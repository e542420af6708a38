// What selectors match, from the terms that Python has matched: `& | ~ ( )` join their sets.
// Whatever else stands in a selector is not decided here: `parse` throws an Unknown.
const Selectors = (() => {
  "use strict";
  const TOKEN = /[ \t\r\n]*(?:([&|~()])|((?:'(?:[^']|'')*'|"(?:[^"]|"")*"|[^ \t\r\n&|~()'"])+)|$)/y;
  const DEEPEST = 50; // as in Python

  class Unknown extends Error {}

  // `[0, 3, 5, 6]` -> `[0, 1, 2, 5]`
  function expand(edges) {
    const found = [];
    for (let at = 0; at < edges.length; at += 2)
      for (let index = edges[at]; index < edges[at + 1]; index += 1) found.push(index);
    return found;
  }

  function complement(data, picked) {
    return new Set([...data.entries.keys()].filter((index) => !picked.has(index)));
  }

  // ---- text to a set of entries

  function tokenize(text) {
    const tokens = [];
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < text.length) {
      const found = TOKEN.exec(text);
      if (!found) throw new Unknown("a quote is never closed");
      if (found[1] || found[2]) tokens.push(found[1] ?? found[2]);
    }
    return tokens;
  }

  function parse(data, text) {
    if (text.trim() === data.selector.trim()) return new Set(expand(data.picked));
    const tokens = tokenize(text);
    let at = 0;
    let depth = 0;
    const nextIs = (operator) => tokens[at] === operator && Boolean((at += 1));
    const nested = (inner) => {
      depth += 1;
      if (depth > DEEPEST) throw new Unknown(`terms are nested more than ${DEEPEST} deep`);
      const found = inner();
      depth -= 1;
      return found;
    };
    const joined = (operator, inner, join) => {
      let found = inner();
      while (nextIs(operator)) found = join(found, inner());
      return found;
    };
    const either = () => joined("|", both, (a, b) => new Set([...a, ...b]));
    const both = () => joined("&", negated, (a, b) => new Set([...a].filter((one) => b.has(one))));
    const negated = () => {
      if (nextIs("~")) return complement(data, nested(negated));
      if (!nextIs("(")) return term(tokens[at++]);
      const inner = nested(either);
      if (!nextIs(")")) throw new Unknown("a ')' is missing");
      return inner;
    };
    const term = (token) => {
      if (token === undefined) throw new Unknown("it ends where a term was expected");
      if ("&|~()".includes(token)) throw new Unknown(`'${token}' stands where a term was expected`);
      const edges = known(data).get(token);
      if (!edges) throw new Unknown(`this page does not know '${token}'${nearest(data, token)}`);
      return new Set(expand(edges));
    };
    const found = either();
    if (at < tokens.length) throw new Unknown(`'${tokens[at]}' was not expected here; join terms with & or |`);
    return found;
  }

  let terms;
  function known(data) {
    terms ??= new Map(data.terms);
    return terms;
  }

  // ---- a set of entries to text

  // The shortest that says: these. The largest modules that are whole, by path, then tensors.
  function textOf(data, picked) {
    if (picked.size === data.entries.length) return "all";
    if (!picked.size) return "none";
    const inside = names(data, picked);
    const outside = names(data, complement(data, picked));
    if (inside.length <= outside.length + 1) return inside.join(" | ");
    return outside.length === 1 ? `~${outside[0]}` : `~(${outside.join(" | ")})`;
  }

  function names(data, picked) {
    const covered = new Set();
    const found = [];
    for (const [text, edges] of data.terms) {
      if (covered.size === picked.size) break;
      if (!picked.has(edges[0])) continue;
      const members = expand(edges);
      if (!members.every((one) => picked.has(one)) || members.every((one) => covered.has(one))) continue;
      members.forEach((one) => covered.add(one));
      found.push([members[0], text]);
    }
    return found.sort((a, b) => a[0] - b[0]).map(([, text]) => text);
  }

  // The same, as `text`, whose set is `base`, with what came to it and left it, where that is shorter.
  function changedText(data, text, base, picked) {
    const plain = textOf(data, picked);
    const added = names(data, new Set([...picked].filter((one) => !base.has(one))));
    const gone = names(data, new Set([...base].filter((one) => !picked.has(one))));
    let said = gone.length && text.includes("|") ? `(${text})` : text;
    if (gone.length) said += ` & ${gone.map((name) => `~${name}`).join(" & ")}`;
    said = [said, ...added].join(" | ");
    return said.length < plain.length && says(data, said, picked) ? said : plain;
  }

  // Not where `text` has terms that only Python reads.
  function says(data, text, picked) {
    try {
      const found = parse(data, text);
      return found.size === picked.size && [...found].every((one) => picked.has(one));
    } catch (error) {
      if (!(error instanceof Unknown)) throw error;
      return false;
    }
  }

  // ---- help for those who type

  // The three terms spelt most like `word`, in words; none is like a pattern.
  function nearest(data, word) {
    if (/[*?[]|^(re|glob|rows):/.test(word)) return "";
    const most = Math.max(2, word.length / 2);
    const found = data.terms
      .filter(([term]) => Math.abs(term.length - word.length) <= most)
      .map(([term]) => [distance(word, term), term])
      .filter(([far]) => far <= most);
    const near = found.sort((a, b) => a[0] - b[0]).slice(0, 3).map(([, term]) => term);
    return near.length ? ` (nearest: ${near.join(", ")})` : "";
  }

  // Letters to put in, leave out or change (Levenshtein).
  function distance(one, other) {
    let row = [...Array(other.length + 1).keys()];
    for (let at = 1; at <= one.length; at += 1) {
      const next = [at];
      for (let to = 1; to <= other.length; to += 1)
        next[to] = Math.min(next[to - 1] + 1, row[to] + 1, row[to - 1] + (one[at - 1] !== other[to - 1]));
      row = next;
    }
    return row[other.length];
  }

  // What the last word of `text` may become: whole selectors, at most so many.
  function suggestions(data, text, most) {
    const [start] = /^(?:.*[ &|~()])?/s.exec(text);
    const word = text.slice(start.length);
    const fitting = word ? data.terms.filter(([term]) => term.startsWith(word) && term !== word) : [];
    return fitting.slice(0, most).map(([term]) => start + term);
  }

  return { parse, textOf, changedText, complement, expand, known, suggestions, Unknown };
})();
