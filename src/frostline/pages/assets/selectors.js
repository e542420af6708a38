// Selectors as `frostline` reads them: text -> indices of the entries that it matches.
// Rows of a tensor are the one term that a page cannot show; it says so.
const Selectors = (() => {
  "use strict";
  const PREFIXES = ["re", "type", "kind", "stage", "depth", "glob", "rows"];
  const OPERATORS = "&|~()";
  const DEEPEST = 50;

  class SelectorError extends Error {}

  function refuse(text, at, reason) {
    const line = text.replace(/\s/g, " ");
    throw new SelectorError(
      `cannot read the selector at the mark: ${reason}.\n  ${line}\n  ${" ".repeat(at)}^`);
  }

  // ---- text to tokens

  function tokenize(text) {
    const tokens = [];
    let at = 0;
    while (at < text.length) {
      const sign = text[at];
      if (/\s/.test(sign)) at += 1;
      else if (OPERATORS.includes(sign)) tokens.push({ text: sign, start: at++, operator: true });
      else at = readTerm(text, at, tokens);
    }
    return tokens;
  }

  function readTerm(text, start, tokens) {
    const prefix = PREFIXES.find((one) => text.startsWith(`${one}:`, start)) ?? "";
    const at = start + (prefix ? prefix.length + 1 : 0);
    if (prefix === "rows")
      refuse(text, start, "rows of a tensor are not drawn here; give them to `frostline train`");
    if (text[at] === "'" || text[at] === '"') {
      const [content, end] = readQuoted(text, at);
      tokens.push({ text: content, start, prefix, quoted: true });
      return end;
    }
    const end = prefix === "re" ? regexEnd(text, at) : wordEnd(text, at);
    tokens.push({ text: text.slice(at, end), start, prefix });
    return end;
  }

  function readQuoted(text, at) {
    const quote = text[at];
    let content = "";
    for (let next = at + 1; next < text.length; next += 1) {
      if (text[next] !== quote) content += text[next];
      else if (text[next + 1] === quote) content += text[next++];
      else return [content, next + 1];
    }
    return refuse(text, at, `the quote ${quote} is never closed`);
  }

  function wordEnd(text, at) {
    while (at < text.length && !/\s/.test(text[at]) && !OPERATORS.includes(text[at])) at += 1;
    return at;
  }

  function regexEnd(text, at) {
    let groups = 0;
    let inClass = false;
    for (; at < text.length; at += 1) {
      const sign = text[at];
      if (sign === "\\") at += 1;
      else if (inClass) inClass = sign !== "]";
      else if (sign === "[") inClass = true;
      else if (sign === "(") groups += 1;
      else if (sign === ")" && groups > 0) groups -= 1;
      else if (groups === 0 && (/\s/.test(sign) || OPERATORS.includes(sign))) break;
    }
    return Math.min(at, text.length);
  }

  // ---- tokens to a function of the model: each term gives a Set of entries

  function parse(text) {
    const tokens = tokenize(text);
    let at = 0;
    let depth = 0;
    const stop = (token, reason) => refuse(text, token ? token.start : text.length, reason);
    const nextIs = (operator) => {
      const found = tokens[at]?.operator && tokens[at].text === operator;
      if (found) at += 1;
      return found;
    };
    const nested = (inner) => {
      depth += 1;
      if (depth > DEEPEST) stop(tokens[at], `terms are nested more than ${DEEPEST} deep`);
      const found = inner();
      depth -= 1;
      return found;
    };
    const joined = (operator, inner, join) => {
      const terms = [inner()];
      while (nextIs(operator)) terms.push(inner());
      return terms.length === 1 ? terms[0] : (model) => terms.map((t) => t(model)).reduce(join);
    };
    const either = () => joined("|", both, (a, b) => new Set([...a, ...b]));
    const both = () => joined("&", negated, (a, b) => new Set([...a].filter((one) => b.has(one))));
    const negated = () => {
      if (nextIs("~")) {
        const term = nested(negated);
        return (model) => {
          const without = term(model);
          return matching(model, (_, index) => !without.has(index));
        };
      }
      if (nextIs("(")) {
        const inner = nested(either);
        if (!nextIs(")")) stop(tokens[at], "a ')' is missing");
        return inner;
      }
      return term();
    };
    const term = () => {
      const token = tokens[at];
      if (!token) return stop(undefined, "it ends where a term was expected");
      at += 1;
      if (token.operator) return stop(token, `'${token.text}' stands where a term was expected`);
      if (token.prefix) return prefixed(token, stop);
      if (token.quoted) return path(token.text);
      if (token.text === "all") return (model) => matching(model, () => true);
      if (token.text === "none") return () => new Set();
      if (token.text.includes(":")) {
        const known = PREFIXES.map((one) => `${one}:`).join(", ");
        return stop(token, `there is no '${token.text.split(":")[0]}:' (there are ${known})`);
      }
      return /[*?[]/.test(token.text) ? glob(token.text) : path(token.text);
    };
    const found = either();
    if (tokens[at])
      stop(tokens[at], `'${tokens[at].text}' was not expected here; join terms with & or |`);
    return found;
  }

  function prefixed(token, stop) {
    const { prefix, text } = token;
    if (!text) return stop(token, `'${prefix}:' names nothing`);
    if (prefix === "re") return regex(text);
    if (prefix === "type") return ofType(text);
    if (prefix === "kind") return kind(text);
    if (prefix === "glob") return glob(text);
    if (prefix === "stage") {
      const found = /^(-?\d{1,9})(?:\.\.(-?\d{1,9}))?$/.exec(text);
      if (!found)
        return stop(token, "a stage is a number or a range, as stage:0, stage:-1, stage:1..3");
      return stage(Number(found[1]), Number(found[2] ?? found[1]));
    }
    if (!/^\d+(\.\d+)?%$/.test(text)) return stop(token, "a depth is a percentage, as depth:60%");
    return depthOf(Number.parseFloat(text), text);
  }

  // ---- terms

  function matching(model, says) {
    const found = new Set();
    model.entries.forEach((entry, index) => says(entry, index) && found.add(index));
    return found;
  }

  // Every term must match something.
  function byName(text, says) {
    return (model) => {
      const found = matching(model, (entry) => entry.names.some((pair) => pair.some(says)));
      if (!found.size) missing(model, text);
      return found;
    };
  }

  function missing(model, text, more = "") {
    throw new SelectorError(`'${text}' matches no parameter of ${model.title}.${more}`);
  }

  function path(text) {
    return byName(text, (name) => name === text || name.startsWith(`${text}.`));
  }

  function glob(text) {
    const rule = new RegExp(globRule(text), "s");
    return byName(text, (name) => rule.test(name));
  }

  // `*` stays inside a segment of a dotted name, `**` crosses segments; modules above match too.
  function globRule(text) {
    const parts = text.split(/(\*\*|\*|\?|\[[^\]]*\])/).map((part) => {
      if (part === "**") return ".*";
      if (part === "*") return "[^.]*";
      if (part === "?") return "[^.]";
      if (part.length > 2 && part.startsWith("[") && part.endsWith("]")) return globClass(part);
      return part.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
    });
    return `^${parts.join("")}(?:\\.|$)`;
  }

  function globClass(part) {
    const inner = part.slice(1, -1).replace(/[\\\]^]/g, "\\$&");
    return `(?!\\.)[${inner.startsWith("!") ? `^${inner.slice(1)}` : inner}]`;
  }

  function regex(text) {
    let rule;
    try {
      rule = new RegExp(text.replaceAll("(?P<", "(?<").replaceAll("\\Z", "$(?![^])"));
    } catch {
      throw new SelectorError(
        `'re:${text}' is no regular expression that a browser reads; ` +
        "`frostline inspect --train` reads all of Python's.");
    }
    return byName(`re:${text}`, (name) => rule.test(name));
  }

  function ofType(text) {
    const has = (model, name) => {
      for (let at = name.lastIndexOf("."); ; at = name.lastIndexOf(".", at - 1)) {
        const owner = at < 0 ? "" : name.slice(0, at);
        if (model.classes[owner]?.includes(text)) return true;
        if (at < 0) return false;
      }
    };
    return (model) => {
      const found = matching(model, (entry) => entry.names.some(([name]) => has(model, name)));
      if (!found.size) missing(model, `type:${text}`);
      return found;
    };
  }

  function kind(text) {
    return (model) => {
      if (!model.kinds.includes(text))
        throw new SelectorError(`there is no 'kind:${text}'. Kinds: ${model.kinds.join(", ")}.`);
      const found = matching(model, (entry) => entry.kinds.includes(text));
      if (found.size) return found;
      const present = model.kinds.filter((k) => model.entries.some((e) => e.kinds.includes(k)));
      const list = present.map((k) => `kind:${k}`).join(", ") || "none of the kinds";
      return missing(model, `kind:${text}`, ` It has: ${list}.`);
    };
  }

  function stage(first, last) {
    return (model) => {
      const count = model.stages.length;
      const [low, high] = [first, last].map((n) => (n < 0 ? n + count : n));
      if (!(low >= 0 && low <= high && high < count))
        throw new SelectorError(
          `no such stage: ${model.title} has ${count}, stage:0 to stage:${count - 1}, ` +
          "or stage:-1 for the last.");
      return matching(model, (entry) => entry.stage >= low && entry.stage <= high);
    };
  }

  function depthOf(percent, text) {
    if (!(percent > 0 && percent <= 100))
      throw new SelectorError(`'depth:${text}' is out of range: above 0% and up to 100%.`);
    return (model) => {
      const count = Math.trunc((percent / 100) * model.stages.length + 0.5);
      if (!count) throw new SelectorError(`'depth:${text}' is less than half a stage.`);
      return matching(model, (entry) => entry.stage < count);
    };
  }

  // ---- entries to text

  function word(text) {
    if (/^[^\s&|~()'"*?[\]:]+$/.test(text) && text !== "all" && text !== "none") return text;
    const quote = text.includes("'") ? '"' : "'";
    return quote + text.replaceAll(quote, quote + quote) + quote;
  }

  // The shortest text that says: these entries. The largest modules that are whole, by path.
  function textOf(model, picked) {
    if (picked.size === model.entries.length) return "all";
    if (!picked.size) return "none";
    const inside = names(model, picked);
    const rest = matching(model, (_, index) => !picked.has(index));
    const outside = names(model, rest);
    if (inside.length <= outside.length + 1) return inside.join(" | ");
    return outside.length === 1 ? `~${outside[0]}` : `~(${outside.join(" | ")})`;
  }

  function names(model, picked) {
    const whole = new Map();
    model.entries.forEach((entry, index) => {
      for (const [name] of entry.names)
        for (const above of pathsAbove(name))
          whole.set(above, (whole.get(above) ?? true) && picked.has(index));
    });
    const found = [];
    const seen = new Set();
    model.entries.forEach((entry, index) => {
      if (!picked.has(index) || entry.names.some(([name]) => covered(name, seen))) return;
      const [name] = entry.names[0];
      const largest = pathsAbove(name).find((above) => above && whole.get(above)) ?? name;
      seen.add(largest);
      found.push(word(largest));
    });
    return found;
  }

  function covered(name, seen) {
    return seen.has(name) || pathsAbove(name).some((above) => seen.has(above));
  }

  // Of `a.b.weight`: "", "a", "a.b".
  function pathsAbove(name) {
    const parts = name.split(".");
    return parts.map((_, count) => parts.slice(0, count).join("."));
  }

  return { parse, textOf, pathsAbove, word, SelectorError };
})();
