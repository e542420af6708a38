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
      if (!edges) throw new Unknown(`this page does not know '${token}'`);
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

  // What the last word of `text` may become: whole selectors, at most so many.
  function suggestions(data, text, most) {
    const [start] = /^(?:.*[ &|~()])?/s.exec(text);
    const word = text.slice(start.length);
    const fitting = word ? data.terms.filter(([term]) => term.startsWith(word) && term !== word) : [];
    return fitting.slice(0, most).map(([term]) => start + term);
  }

  return { parse, textOf, complement, expand, known, suggestions, Unknown };
})();
