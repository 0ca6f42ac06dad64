"""Turns preprocessed Metal text into C++ that clang compiles for the CPU, and lists the kernels in it.

Address spaces become types of clang's (address_space(1), (2), (3)): flat memory when it runs, but distinct pointers when it is compiled,
so Metal's rules hold and its overloads on address spaces stay apart. What is changed:

    threadgroup T x[N];           auto& x = emulator::threadgroup_variable<... T[N], id>("x");
    device, constant, threadgroup __attribute__((address_space(n)));  `thread` vanishes
    1.0bf                         bfloat(1.0)
    float4(a, b)                  metal::emulated::make<float4>(a, b), as clang's vectors have no constructors
    constant T x[2] as parameter  the pointer it decays to
    f() const device { ... }      dropped: C++ has no such members, and the one for `thread` objects stays
    [[attributes]]                taken out; those of kernels and their parameters are remembered
    template [[host_name("n")]] [[kernel]] decltype(f<T>) f<T>;      remembered
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .tokens import ADDRESS_SPACES, VECTOR_TYPES, Token, closing, joined, significant, split_at_commas, tokenize

STATEMENT_ENDS = (";", "{", "}")


@dataclass
class KernelFunction:
    """A function marked [[kernel]]: the C++ expression of each parameter's attribute code, and the parameters' names."""

    codes: list[str]
    names: list[str]
    is_template: bool


@dataclass
class Rewriter:
    """Rewrites one text; afterwards `kernels`, `instances` and `constants` say what was found in it."""

    text: str
    kernels: dict[str, KernelFunction] = field(default_factory=dict)
    instances: list[tuple[str, str]] = field(default_factory=list)  # (host name, expression of the function)
    constants: list[tuple[int, str]] = field(default_factory=list)  # (id, name of the variable)

    def run(self) -> str:
        """The C++ text, ending with a table of its kernels."""
        self.tokens = tokenize(self.text)
        self.vector_names = VECTOR_TYPES | self.aliases()
        self.out: list[str] = []
        self.at = 0  # the next token
        self.before = [";", ";"]  # the last two significant tokens that were written
        self.statement = 0  # where in `out` the current statement or member starts
        self.last_name = ""
        self.variables = 0
        self.in_kernel_head = False
        self.in_template_head = False
        while self.at < len(self.tokens):
            self.step()
        return "".join(self.out) + self.table()

    # ---- walking ------------------------------------------------------------------------------------------------------

    def skip(self, index: int) -> int:
        """The index of the first significant token from `index` on."""
        while index < len(self.tokens) and self.tokens[index].kind in ("space", "marker"):
            index += 1
        return index

    def peek(self, index: int) -> str:
        """The text of the first significant token from `index` on."""
        index = self.skip(index)
        return self.tokens[index].text if index < len(self.tokens) else ""

    def write(self, text: str, until: int, means: str) -> None:
        """Writes `text` for the tokens up to `until`; `means` is what later tokens see before them."""
        self.out.append(text)
        self.at = until
        self.before = [self.before[1], means]
        if means in STATEMENT_ENDS:
            self.statement = len(self.out)
            self.in_template_head = False

    def step(self) -> None:
        token = self.tokens[self.at]
        if token.kind == "marker":
            self.out.append("" if token.text.startswith("#pragma METAL") else token.text)
            self.at += 1
        elif token.kind == "space":
            self.out.append(token.text)
            self.at += 1
        elif token.text == "[[":
            self.attribute()
        elif token.kind == "name":
            self.name(token)
        elif token.kind == "number" and re.fullmatch(r"[\d.]+(?:e[+-]?\d+)?bf", token.text):
            self.write(f"bfloat({token.text[:-2]})", self.at + 1, token.text)
        else:
            self.write(token.text, self.at + 1, token.text)

    def name(self, token: Token) -> None:
        text, previous = token.text, self.before[1]
        if text == "kernel" and previous in (*STATEMENT_ENDS, ">"):
            self.in_kernel_head = True
            self.at += 1
        elif text == "template" and self.peek(self.at + 1) == "[[":
            self.instance()
        elif text == "thread":
            self.at += 1
        elif text in ("threadgroup", "alignas") and previous in STATEMENT_ENDS and self.variable():
            pass
        elif text in ADDRESS_SPACES and (previous == ")" or (previous == "const" and self.before[0] == ")")):
            self.drop_member()
        elif text in ADDRESS_SPACES and previous in ("(", ",", "const") and self.array_parameter(text):
            pass
        elif text in ADDRESS_SPACES:
            self.write(f"__attribute__((address_space({ADDRESS_SPACES[text]})))", self.at + 1, text)
        elif previous not in ("operator", "struct", "using") and self.vector_constructor(text):
            pass
        else:
            if self.in_kernel_head and text != "void" and self.peek(self.at + 1) == "(":
                self.kernel_parameters(text)
            self.in_template_head |= text == "template"
            self.last_name = text
            self.write(text, self.at + 1, text)

    # ---- what is changed ----------------------------------------------------------------------------------------------

    def aliases(self) -> set[str]:
        """Names given to types by `using X = vec<...>` or a typedef: calls of them may construct vectors."""
        found = set()
        tokens = significant(self.tokens)
        for i, token in enumerate(tokens[:-4]):
            if token.text == "using" and tokens[i + 2].text == "=":
                end = next(j for j in range(i, len(tokens)) if tokens[j].text == ";")
                if any(t.text == "vec" or t.text in VECTOR_TYPES for t in tokens[i + 3 : end]):
                    found.add(tokens[i + 1].text)
            elif token.text == "typedef":
                end = next(j for j in range(i, len(tokens)) if tokens[j].text == ";")
                if any(t.text == "vec" or t.text in VECTOR_TYPES for t in tokens[i + 1 : end - 1]):
                    found.add(tokens[end - 1].text)
        return found

    def attribute(self) -> None:
        """[[...]]: remembers function constants and kernels, writes nothing."""
        end = closing(self.tokens, self.at)
        body = "".join(token.text for token in self.tokens[self.at + 1 : end - 1])
        if re.search(r"\bkernel\b", body):
            self.in_kernel_head = True
        constant = re.search(r"\bfunction_constant\s*\(\s*(\d+)\s*\)", body)
        if constant and self.before[1] not in (",", "("):
            self.constants.append((int(constant.group(1)), self.last_name))
        self.out.append(" ")
        self.at = end + 1

    def instance(self) -> None:
        """template [[host_name("n")]] [[kernel]] decltype(f<T>) f<T>;"""
        start = self.skip(self.at + 1)
        end = next(i for i in range(start, len(self.tokens)) if self.tokens[i].text == ";")
        tokens = significant(self.tokens[start:end])
        host_name = "".join(token.text[1:-1] for token in tokens if token.kind == "string")
        kind = next(i for i, token in enumerate(tokens) if token.text == "decltype")
        self.instances.append((host_name, joined(tokens[closing(tokens, kind + 1) + 1 :])))
        self.write("", end + 1, ";")

    def variable(self) -> bool:
        """A threadgroup variable; false for a pointer to threadgroup memory. alignas may stand before or behind the keyword."""
        end = next(i for i in range(self.at, len(self.tokens)) if self.tokens[i].text == ";")
        tokens = significant(self.tokens[self.at : end])
        alignment = ""
        if tokens[0].text == "alignas":
            alignment, tokens = self.take_alignment(tokens)
        if not tokens or tokens[0].text != "threadgroup":
            return False
        tokens = tokens[1:]
        if tokens and tokens[0].text == "alignas":
            alignment, tokens = self.take_alignment(tokens)
        first, *others = split_at_commas(tokens)
        head = next((i for i, token in enumerate(first) if token.text == "["), len(first))
        if any(token.text in ("*", "&", "(", "=") for token in first[:head]) or head < 2:
            return False
        base = joined(first[: head - 1])
        declared = []
        for declarator in (first[head - 1 :], *others):
            name, dimensions = declarator[0].text, joined(declarator[1:])
            variable_type = f"__attribute__((address_space(3))) {base} {dimensions}"
            declared.append(
                f"auto& {name} = ::emulator::threadgroup_variable<{variable_type}, {self.variables}"
                f'{", " + alignment if alignment else ""}>("{name}");'
            )
            self.variables += 1
        self.write(" ".join(declared), end + 1, ";")
        return True

    @staticmethod
    def take_alignment(tokens: list[Token]) -> tuple[str, list[Token]]:
        end = closing(tokens, 1)
        return joined(tokens[2:end]), tokens[end + 1 :]

    def array_parameter(self, space: str) -> bool:
        """`constant const int x[2]` in a parameter list: clang wants the pointer it decays to."""
        end, depth = self.at + 1, 0
        while True:
            text = self.tokens[end].text
            if depth == 0 and text in (",", ")", ">", "]", ";", "{", "=", "[["):
                break
            depth += (text in "([<") - (text in ")]>")
            end += 1
        tokens = significant(self.tokens[self.at + 1 : end])
        if self.tokens[end].text not in (",", ")") or len(tokens) < 4 or tokens[-1].text != "]":
            return False
        start = max(i for i, token in enumerate(tokens) if token.text == "[")
        if any(token.text in "*&" for token in tokens) or tokens[start - 1].kind != "name":
            return False
        base, name = joined(tokens[: start - 1]), tokens[start - 1].text
        self.write(f"__attribute__((address_space({ADDRESS_SPACES[space]}))) {base}* {name}", end, "]")
        return True

    def drop_member(self) -> None:
        """A member function for objects in another address space, from where its declaration starts to its end."""
        end, depth = self.at + 1, 0
        while depth or self.tokens[end].text not in ("{", ";"):
            depth += (self.tokens[end].text == "(") - (self.tokens[end].text == ")")
            end += 1
        if self.tokens[end].text == "{":
            end = closing(self.tokens, end)
            if self.peek(end + 1) == ";":
                end = self.skip(end + 1)
        lost_lines = "".join(self.out[self.statement :]).count("\n") + sum(t.text.count("\n") for t in self.tokens[self.at : end + 1])
        del self.out[self.statement :]
        self.write("\n" * lost_lines, end + 1, ";")

    def vector_constructor(self, text: str) -> bool:
        """float4(...) or vec<T, 2>(...); other uses of the names are left alone."""
        name_end = self.at + 1
        if text == "vec":
            start = self.skip(name_end)
            if self.tokens[start].text != "<":
                return False
            name_end = closing(self.tokens, start) + 1
        elif text not in self.vector_names:
            return False
        call = self.skip(name_end)
        if call >= len(self.tokens) or self.tokens[call].text != "(" or self.peek(call + 1) in ("&", "*"):
            return False
        qualified = self.before[1] == "::" and text == "vec"
        if qualified:  # metal::vec<...>( has its qualifier written already: it must go inside
            while self.out[-1].strip() in ("", "::", "metal"):
                self.out.pop()
        spelled = "".join(token.text for token in self.tokens[self.at : name_end])
        self.write(f" ::metal::emulated::make<{'::metal::' if text == 'vec' else ''}{spelled}>", name_end, ">")
        return True

    # ---- kernels ------------------------------------------------------------------------------------------------------

    def kernel_parameters(self, kernel: str) -> None:
        start = self.skip(self.at + 1)
        self.in_kernel_head = False
        found = KernelFunction([], [], self.in_template_head)
        parameters = split_at_commas(significant(self.tokens[start + 1 : closing(self.tokens, start)]))
        taken: set[int] = set()
        for parameter in parameters:
            at = next((i for i, token in enumerate(parameter) if token.text == "[["), len(parameter))
            declaration, attributes = parameter[:at], joined(parameter[at:])
            buffer = re.search(r"\bbuffer \( (\d+) \)", attributes)
            words = [word for word in re.findall(r"[a-z_]+", attributes) if word != "function_constant"]
            if buffer or (not words and any(token.text in "*&" for token in declaration)):
                # Without an attribute a buffer gets the next free number, as in Metal.
                number = int(buffer.group(1)) if buffer else next(i for i in range(99) if i not in taken)
                taken.add(number)
                found.codes.append(f"::emulator::attribute::buffer + {number}")
            elif words:
                found.codes.append(f"::emulator::attribute::{words[0]}")
            else:
                raise SyntaxError(f"kernel {kernel}: parameter '{joined(declaration)}' has no attribute and is no buffer")
            found.names.append(declaration[-1].text)
        self.kernels[kernel] = found

    def table(self) -> str:
        """The module's table of contents, which host.py reads."""
        instances = self.instances + [(kernel, kernel) for kernel, found in self.kernels.items() if not found.is_template]
        lines = ["", '# 1 "table of kernels"', "namespace {"]
        for kernel, found in self.kernels.items():
            lines.append(f"constexpr int codes_{kernel}[] = {{{', '.join(found.codes)}}};")
            names = ", ".join(f'"{name}"' for name in found.names)
            lines.append(f"constexpr const char* names_{kernel}[] = {{{names}}};")
        rows = []
        for i, (host_name, expression) in enumerate(instances):
            kernel = expression.split("<")[0].strip()
            lines.append(f"using thunk_{i} = ::emulator::Thunk<&{expression}, codes_{kernel}>;")
            lines.append(f"constexpr auto table_{i} = thunk_{i}::table(names_{kernel});")
            rows.append(f'{{"{host_name}", thunk_{i}::run, table_{i}.parameter, thunk_{i}::count}}')
        lines.append(f"constexpr ::emulator::Kernel kernels[] = {{{', '.join(rows)}}};")
        constants = ", ".join(f"{{{number}, sizeof({name}), (void*)&{name}}}" for number, name in self.constants)
        if constants:
            lines.append(f"const ::emulator::FunctionConstant constants[] = {{{constants}}};")
        lines.append("}")
        lines.append(
            f'extern "C" const ::emulator::Module emulator_module = {{kernels, {len(rows)}, '
            f"{'constants' if constants else 'nullptr'}, {len(self.constants)}}};"
        )
        return "\n".join(lines) + "\n"
