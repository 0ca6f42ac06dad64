"""Finds in Metal text what clang accepts on Linux but Apple's compiler rejects, or does not have to accept.

    python tools/metal_lint.py FILE...      complete texts, and headers (which are not compiled)

The text alone shows: characters that are not ASCII, lambdas (Metal 4 takes them), words and types that Metal lacks, pointers and
references without an address space, threadgroup variables anywhere but in the outermost scope of a kernel. Clang is asked for the rest,
since types and templates decide it: implicit conversions to and from bfloat, recursion, C++17 beyond what MLX's own kernels use, pointers
as numbers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from metal_emulator.compiler import Compiler, EmulatorError, compiler, run
from metal_emulator.emulator import default_cache
from metal_emulator.tokens import Token, closing, significant, split_at_commas, tokenize

SPACES = frozenset({"device", "constant", "threadgroup", "thread"})
QUALIFIERS = SPACES | {"const", "constexpr", "static", "volatile", "mutable", "inline", "typename", "METAL_FUNC"}
MISSING = {
    "asm": "inline assembly",
    "catch": "exceptions",
    "delete": "delete",
    "double": "double",
    "dynamic_cast": "dynamic_cast",
    "goto": "goto",
    "new": "new",
    "std": "the C++ standard library",
    "thread_local": "thread_local",
    "throw": "exceptions",
    "try": "exceptions",
    "typeid": "type identification",
    "virtual": "virtual functions",
}
# C++17 that Apple's compiler takes before Metal 4: MLX's own kernels use it.
ACCEPTED = ("constexpr if", "'static_assert' with no message", "inline variables")
CASTS = ("reinterpret_cast", "static_cast", "const_cast")
POINTING = ("*", "&", "&&")


class Finding(NamedTuple):
    """One thing to change."""

    line: int
    rule: str
    text: str

    def __str__(self):
        return f"line {self.line}: {self.rule}: {self.text}"


def lint(text: str, skip: int = 0) -> list[Finding]:
    """All rules on a complete Metal text; nothing is said of the first `skip` lines (MLX's utils, say)."""
    build = Compiler(default_cache())
    found = not_ascii(text) + Reader(expanded(build.preprocessed(text))).read()
    found += implicit_bfloat_and_language(text) + recursion(text)
    return sorted({finding for finding in found if finding.line > skip})


def lint_source(text: str) -> list[Finding]:
    """The rules that need no compiler: for headers, too. Macros are not looked into."""
    return sorted({*not_ascii(text), *Reader(without_comments(text)).read()})


def not_ascii(text: str) -> list[Finding]:
    return [Finding(text.count("\n", 0, m.start()) + 1, "ASCII", repr(m.group())) for m in re.finditer(r"[^\x00-\x7f]", text)]


def without_comments(text: str) -> str:
    """The text with blanks for comments and preprocessor lines; line numbers stay."""

    def blank(match):
        return match.group() if match.group()[0] == '"' else re.sub(r"[^\n]", " ", match.group())

    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)


def expanded(preprocessed: str) -> str:
    """The preprocessor's output with every line where it stood in the text."""
    lines: dict[int, str] = {}
    file, line = "", 0
    for row in preprocessed.split("\n"):
        marker = re.match(r'# (\d+) "([^"]*)"', row)
        if marker:
            file, line = marker.group(2), int(marker.group(1))
            continue
        if file == "kernel.metal":
            lines[line] = lines.get(line, "") + " " + row
        line += 1
    return "\n".join(lines.get(i, "") for i in range(1, max(lines, default=0) + 1))


# ---- what the text shows -----------------------------------------------------------------------------------------------------------


class Reader:
    """Walks over the tokens, statement by statement, knowing in which kind of scope it is."""

    def __init__(self, text: str):
        self.tokens = significant(tokenize(text))
        self.found: list[Finding] = []

    def note(self, token: Token, rule: str, text: str) -> None:
        self.found.append(Finding(token.line, rule, text))

    def read(self) -> list[Finding]:
        scopes, start, depth = ["namespace"], 0, 0
        for i, token in enumerate(self.tokens):
            before = self.tokens[i - 1] if i else Token("sign", ";", 0)
            self.word(i, token, before)
            depth += (token.text == "(") - (token.text == ")")
            if depth:
                continue  # what stands in parentheses belongs to one statement
            if token.text == "{":
                head = self.tokens[start:i]
                self.statement(head, scopes[-1])
                scopes.append(scope_of(head, scopes[-1]))
            elif token.text == ";":
                self.statement(self.tokens[start:i], scopes[-1])
            elif token.text == "}" and len(scopes) > 1:
                scopes.pop()
            if token.text in "{;}":
                start = i + 1
        return self.found

    def word(self, i: int, token: Token, before: Token) -> None:
        """Rules on a token and its neighbours."""
        after = self.tokens[i + 1].text if i + 1 < len(self.tokens) else ""
        if token.text in MISSING and token.kind == "name" and (token.text != "std" or after == "::"):
            self.note(token, "not in Metal", MISSING[token.text])
        elif token.text == "long" and after in ("long", "double"):
            self.note(token, "not in Metal", f"long {after}")
        elif token.text == "[" and (before.text == "return" or (before.kind == "sign" and before.text not in (")", "]", ">"))):
            self.note(token, "lambda", "expected a function")
        elif token.text in CASTS and after == "<":
            self.pointers(self.tokens[i + 2 : closing(self.tokens, i + 1)])
        elif token.text == "(" and before.kind != "name" and before.text not in (")", "]", ">"):
            inside = self.tokens[i + 1 : closing(self.tokens, i)]
            if inside and inside[-1].text in POINTING:
                self.pointers(inside)  # a cast
        elif token.text == "for" and after == "(":
            self.declaration(self.tokens[i + 2 : closing(self.tokens, i + 1)])

    def statement(self, tokens: list[Token], scope: str) -> None:
        """A statement without its ; or the head of a block."""
        tokens = without_attributes(without_template_head(tokens))
        if not tokens or scope == "values" or tokens[0].text in ("static_assert", "struct", "class", "union", "enum"):
            return
        if tokens[0].text in ("using", "typedef"):
            self.pointers(tokens)
            return
        declared = [t for t in tokens if t.text in ("threadgroup", "alignas")]
        if tokens[0].text in ("threadgroup", "alignas") and any(t.text == "threadgroup" for t in declared):
            name = next((i for i, t in enumerate(tokens) if t.text in ("[", "=", ",", "*", "&")), len(tokens))
            if (name == len(tokens) or tokens[name].text not in POINTING) and scope != "kernel":
                self.note(tokens[0], "threadgroup variable", "expected only in the outermost scope of a kernel")
        if scope in ("namespace", "class"):
            call = next((i for i, t in enumerate(tokens) if t.text == "("), None)
            if call and tokens[call - 1].kind == "name" and not any(t.text in ("=", "operator") for t in tokens[:call]):
                self.pointers(tokens[:call])
                end = closing(tokens, call)
                for parameter in split_at_commas(tokens[call + 1 : end]):
                    self.pointers(before_value(parameter))
                return
        self.declaration(tokens)

    def declaration(self, tokens: list[Token]) -> None:
        """If the tokens start like a declaration of a variable, its pointers and references need address spaces."""
        i, named = 0, False
        while i < len(tokens):
            text = tokens[i].text
            if text in QUALIFIERS or (not named and text in ("unsigned", "auto")):
                named |= text in ("unsigned", "auto")
                i += 1
            elif text == "<" and named:
                i = closing(tokens, i) + 1
            elif tokens[i].kind == "name" and (not named or tokens[i - 1].text == "::"):
                named = True
                i += 1
            elif text == "::":
                i += 1
            else:
                break
        stars = i
        while i < len(tokens) and (tokens[i].text in POINTING or tokens[i].text in QUALIFIERS):
            i += 1
        ends = tokens[i + 1].text if i + 1 < len(tokens) else ";"
        if named and stars < i and i < len(tokens) and tokens[i].kind == "name" and ends in (";", "=", "[", "{", ",", ":", "("):
            self.pointers(tokens[:i])

    def pointers(self, tokens: list[Token]) -> None:
        """A type's * and & outside of template arguments: one address space each."""
        depth, levels, spaces = 0, [], 0
        for token in tokens:
            depth += (token.text in ("<", "(")) - (token.text in (">", ")"))
            if depth == 0:
                levels += [token] if token.text in POINTING else []
                spaces += token.text in SPACES
        if len(levels) > spaces:
            text = " ".join(t.text for t in tokens)
            self.note(levels[0], "address space", f"expected device, constant, threadgroup or thread for each * and &, found '{text}'")


def scope_of(head: list[Token], outer: str) -> str:
    """What the { behind these tokens opens: namespace, class, kernel, function, block or values."""
    words = {token.text for token in head}
    plain = without_attributes(without_template_head(head))
    if not plain:
        return "values" if outer == "values" else "block"
    if "namespace" in words or plain[0].text == "extern":
        return "namespace"
    if outer in ("namespace", "class") and any(token.text == "(" for token in plain) and "=" not in {t.text for t in plain[:1]}:
        return "kernel" if "kernel" in words else "function"
    if plain[0].text in ("struct", "class", "union"):
        return "class"
    if plain[0].text == "enum" or plain[-1].text in ("=", "return", ",", "(") or plain[-1].kind == "name":
        return "block" if plain[-1].text in ("else", "do") else "values"
    return "block"


def without_template_head(tokens: list[Token]) -> list[Token]:
    while tokens and tokens[0].text == "template" and len(tokens) > 1 and tokens[1].text == "<":
        tokens = tokens[closing(tokens, 1) + 1 :]
    return tokens


def without_attributes(tokens: list[Token]) -> list[Token]:
    kept, i = [], 0
    while i < len(tokens):
        if tokens[i].text == "[[":
            i = closing(tokens, i) + 1
        else:
            kept.append(tokens[i])
            i += 1
    return kept


def before_value(parameter: list[Token]) -> list[Token]:
    """A parameter without its default value."""
    end = next((i for i, token in enumerate(parameter) if token.text == "="), len(parameter))
    return parameter[:end]


# ---- what clang knows --------------------------------------------------------------------------------------------------------------


def implicit_bfloat_and_language(text: str) -> list[Finding]:
    """Conversions between bfloat and other types that the text does not spell out (bfloat to float is free), from clang's syntax tree,
    which holds every instance of a template; and C++17 words, from its compatibility warnings."""
    build = Compiler(default_cache())
    flags = [flag for flag in build.flags("plain") if flag != "-w"]
    command = [compiler(), *flags, "-include-pch", str(build.prefix("plain")), "-x", "c++", "-", "-fsyntax-only"]
    command += ["-Xclang", "-ast-dump", "-fno-color-diagnostics", "-Wno-everything", "-Wpre-c++17-compat", "-Wpre-c++20-compat"]
    done = subprocess.run(command, input=build.rewritten(text), capture_output=True, text=True)
    if done.returncode:
        errors = [row for row in done.stderr.split("\n") if ": error: " in row]
        raise EmulatorError("[lint] text: expected Metal that clang accepts, found\n" + "\n".join(errors))
    found = []
    for match in re.finditer(r"^kernel\.metal:(\d+):\d+: warning: (.*?) \[-Wpre", done.stderr, flags=re.M):
        if not match.group(2).startswith(ACCEPTED):
            found.append(Finding(int(match.group(1)), "language", match.group(2)))
    return found + implicit_bfloat(done.stdout) + addresses(done.stdout)


def rows_of(tree: str) -> Iterator[tuple[int, str, str]]:
    """(line of the text, row, the row below) of everything in a syntax tree that stands in the text itself."""
    file, line, lines = "", 0, tree.split("\n")
    for row, below in zip(lines, [*lines[1:], ""], strict=True):
        # A location names only what differs from the one before: file, line or just a column.
        for name, number in re.findall(r"([^\s<>:,]+|<[^<>]+>):(\d+):\d+", row.split("'")[0]):
            file, line = file if name == "line" else name, int(number)
        if file == "kernel.metal":
            yield line, row, below


def addresses(tree: str) -> list[Finding]:
    """Pointers that become numbers. Compilers that write Metal text are known to do so with reinterpret_cast<ulong> and device memory."""
    found = []
    for line, row, below in rows_of(tree):
        if "<PointerToIntegral>" in row:
            pointer = re.search(r"'([^']*)'", below)
            known = "CXXReinterpretCastExpr" in row and type_of(row) == "long" and pointer and "address_space(1)" in pointer.group(1)
            if not known:
                found.append(Finding(line, "address", "expected reinterpret_cast<ulong> of a device pointer"))
    return found


def implicit_bfloat(tree: str) -> list[Finding]:
    found = []
    for line, row, below in rows_of(tree):
        cast = re.search(r"ImplicitCastExpr .*?'([^']*)'(?::'([^']*)')? <(FloatingCast|IntegralToFloating|FloatingToIntegral)>$", row)
        if cast:
            to, given = cast.group(2) or cast.group(1), type_of(below)
            if "__bf16" in (to, given) and (given, to) != ("__bf16", "float"):
                found.append(Finding(line, "implicit conversion", f"{given} to {to}".replace("__bf16", "bfloat")))
        elif "CompoundAssignOperator" in row and type_of(row) == "__bf16" and "ComputeResultTy='float'" in row:
            found.append(Finding(line, "implicit conversion", "float to bfloat in a compound assignment"))
    return found


def type_of(row: str) -> str:
    """The type of a syntax tree's row, with typedefs resolved and without qualifiers."""
    found = re.search(r"'([^']*)'(?::'([^']*)')?", row)
    return (found.group(2) or found.group(1)).split()[-1] if found else ""


def recursion(text: str) -> list[Finding]:
    """Functions that call themselves, directly or through others, from clang's calls (overloads and instances kept apart)."""
    build = Compiler(default_cache())
    command = [compiler(), *build.flags("plain"), "-g1", "-include-pch", str(build.prefix("plain")), "-x", "c++", "-", "-S", "-emit-llvm"]
    code = run([*command, "-Xclang", "-disable-llvm-passes", "-o", "-"], build.rewritten(text))
    calls: dict[str, set[str]] = {}
    lines: dict[str, int] = {}
    debug = {m.group(1): m for m in re.finditer(r"^(!\d+) = distinct !DISubprogram\(name: \"([^\"]*)\".*?line: (\d+)", code, flags=re.M)}
    names: dict[str, str] = {}
    current = ""
    for row in code.split("\n"):
        if row.startswith("define"):
            current = re.search(r"@([\w.$]+)\(", row).group(1)
            calls[current] = set()
            place = debug.get((re.search(r"!dbg (!\d+)", row) or [None, ""])[1])
            lines[current], names[current] = (int(place.group(3)), place.group(2)) if place else (0, current)
        elif current:
            calls[current].update(re.findall(r"(?:call|invoke) [^@]*@([\w.$]+)\(", row))
    return [Finding(lines[f], "recursion", names[f]) for f in calls if f in reachable(calls, f)]


def reachable(calls: dict[str, set[str]], start: str) -> set[str]:
    """The functions that `start` calls, directly or through others."""
    seen: set[str] = set()
    waiting = list(calls[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += calls.get(name, ())
    return seen


def main(paths: list[str]) -> int:
    count = 0
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        complete = re.search(r"\bkernel\b", without_comments(text)) is not None
        for finding in lint(text) if complete else lint_source(text):
            print(f"{path}: {finding}")
            count += 1
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
