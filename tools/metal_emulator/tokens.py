"""Metal text as tokens: enough of C++'s lexical grammar to find declarations, not a parser."""

from __future__ import annotations

import re
from typing import NamedTuple

ADDRESS_SPACES = {"device": 1, "constant": 2, "threadgroup": 3}
SCALAR_TYPES = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "float", "bfloat", "bool")
VECTOR_TYPES = frozenset(scalar + size for scalar in SCALAR_TYPES for size in "234")
OPENING, CLOSING = "([{", ")]}"

PATTERN = re.compile(
    r"""(?P<marker>^\#[^\n]*\n)
      | (?P<space>\s+)
      | (?P<string>"(?:\\.|[^"\\])*")
      | (?P<character>'(?:\\.|[^'\\])*')
      | (?P<name>[A-Za-z_]\w*)
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)
      | (?P<sign>::|\[\[|->|<<=|>>=|&&|\|\||[-+*/%&|^=!<>]=|[^\w\s])""",
    re.M | re.X,
)


class Token(NamedTuple):
    """A piece of the text. `kind`: marker (a preprocessor line), space, string, character, name, number, sign."""

    kind: str
    text: str
    line: int


def tokenize(text: str) -> list[Token]:
    """All of the text; joining the tokens' texts gives it back."""
    tokens, line = [], 1
    for match in PATTERN.finditer(text):
        tokens.append(Token(match.lastgroup, match.group(), line))
        line += match.group().count("\n")
    return tokens


def significant(tokens: list[Token]) -> list[Token]:
    """The tokens without white space and preprocessor lines."""
    return [token for token in tokens if token.kind not in ("space", "marker")]


def joined(tokens: list[Token]) -> str:
    """Tokens as text, with a space between each two so that no names grow together."""
    return " ".join(token.text for token in tokens)


def closing(tokens: list[Token], start: int) -> int:
    """The index of the bracket that closes the one at `start`: ( [ [[ { or <."""
    opened = tokens[start].text
    if opened == "<":
        depth = 0
        for i in range(start, len(tokens)):
            depth += {"<": 1, ">": -1}.get(tokens[i].text, 0)
            if depth == 0:
                return i
        raise SyntaxError(f"line {tokens[start].line}: '<' is never closed")
    depth = 0
    for i in range(start, len(tokens)):
        text = tokens[i].text
        depth += 2 if text == "[[" else 1 if text in OPENING else -1 if text in CLOSING else 0
        if depth == 0:
            return i
    raise SyntaxError(f"line {tokens[start].line}: '{opened}' is never closed")


def split_at_commas(tokens: list[Token]) -> list[list[Token]]:
    """The parts of a list; commas inside brackets and template arguments do not separate."""
    parts, depth, angles = [[]], 0, 0
    for token in tokens:
        text = token.text
        depth += 2 if text == "[[" else 1 if text in OPENING else -1 if text in CLOSING else 0
        angles += (text == "<") - (text == ">") if depth == 0 else 0
        if text == "," and depth == 0 and angles == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
