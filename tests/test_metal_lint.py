"""The Metal lint: every rule finds its planted line, and nothing in text that Apple's compiler is known to take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import metal_lint
from building import ROOT
from metal_emulator import EmulatorError
from metal_emulator.compiler import compiler
from metal_texts import HEAD, PRODUCT

try:
    compiler()
except EmulatorError as error:
    pytest.skip(str(error), allow_module_level=True)

# Declarations and statements that are right, around the places where wrong ones are planted.
CLEAN = (
    HEAD
    + """
namespace own {
struct Row {
  const device half* data;
  const device half* threadgroup* shared;
  float scale;
  METAL_FUNC float at(int i) const thread { return float(data[i]) * scale; }  // members
};
template <typename P>
METAL_FUNC float first(P p, thread float& count) { count += 1.0f; return float(p[0]); }
template <int N>
METAL_FUNC float deep(float x) { if constexpr (N > 0) { return deep<N - 1>(x) * 2.0f; } return x; }
template <typename T>
METAL_FUNC T rounded(float x) { return T(x); }
METAL_FUNC float product(float a, float b) { return a * b; }
METAL_FUNC float product(float2 a, float2 b) { return product(a.x, b.x) + product(a.y, b.y); }  // overloads
enum Kind { ONE = 1 << 2, TWO };
}
kernel void k(device bfloat* out [[buffer(0)]], const device half* x [[buffer(1)]], constant int& n [[buffer(2)]],
              uint i [[thread_position_in_grid]]) {
  threadgroup half tile[32];
  threadgroup float4 wide;
  threadgroup half* row = tile + 2 * n;
  float a[2] = {1.0f, 2.0f};
  thread float& b = a[n & 1];  // statements
  const int rest = n * 3 & 1;
  for (int j = 0; j < n; j++) { b += float(x[j]); }
  row[i] = x[i * 2];
  wide = float4(own::product(float2(b), float2(a[0] * a[1])));
  const device uint* bits = reinterpret_cast<const device uint*>(x) + (uint)n * (i & 3);
  out[i] = own::rounded<bfloat>(own::deep<3>(b) + float(row[i]) + wide.x + float(bits[rest]));
  out[i] = bfloat(float(out[i]) * 2.0f);
  float c = out[i];
  c += float(reinterpret_cast<ulong>(x) & 15ul);
  own::first(x, c);
}
"""
)
MEMBERS, OVERLOADS, STATEMENTS = "// members", "// overloads", "// statements"
PLANTS = [
    ("ASCII", STATEMENTS, "// \u00e9"),
    ("lambda", STATEMENTS, "auto f = [](float y) { return y; };"),
    ("lambda", STATEMENTS, "own::first(x, c, [&] { return 1; });"),
    ("address space", STATEMENTS, "float* p = a;"),
    ("address space", STATEMENTS, "const float& p = a[0];"),
    ("address space", STATEMENTS, "auto& p = a[0];"),
    ("address space", STATEMENTS, "vec<float, 2>* p;"),
    ("address space", STATEMENTS, "thread float** p;"),
    ("address space", STATEMENTS, "for (float& y : a) y = 0.0f;"),
    ("address space", STATEMENTS, "row[i] = ((const half*)x)[i];"),
    ("address space", STATEMENTS, "row[i] = *reinterpret_cast<half*>(tile);"),
    ("address space", STATEMENTS, "using Pointer = float*;"),
    ("address space", MEMBERS, "half* plain;"),
    ("address space", MEMBERS, "float sum(const float* p) const { return p[0]; }"),
    ("address space", OVERLOADS, "METAL_FUNC float total(thread float& a, float2& b) { return a + b.x; }"),
    ("address space", OVERLOADS, "template <typename T> METAL_FUNC T* next(const device T* p) { return p + 1; }"),
    ("threadgroup variable", STATEMENTS, "{ threadgroup float inner[4]; }"),
    ("threadgroup variable", STATEMENTS, "if (i == 0) { threadgroup float inner; inner = 0.0f; }"),
    ("threadgroup variable", OVERLOADS, "METAL_FUNC void f() { threadgroup float inner[4]; inner[0] = 0.0f; }"),
    ("threadgroup variable", OVERLOADS, "threadgroup float outer[4];"),
    ("not in Metal", STATEMENTS, "double y = 1.0;"),
    ("not in Metal", STATEMENTS, "long long y = 1;"),
    ("not in Metal", STATEMENTS, "int y = std::min(n, 1);"),
    ("not in Metal", STATEMENTS, "goto end; end:;"),
    ("not in Metal", MEMBERS, "virtual float f() const { return 1.0f; }"),
    ("implicit conversion", STATEMENTS, "out[i] = a[0];"),
    ("implicit conversion", STATEMENTS, "bfloat y = 0;"),
    ("implicit conversion", STATEMENTS, "bfloat y = 1.0f;"),
    ("implicit conversion", STATEMENTS, "out[i] += 1.0f;"),
    ("implicit conversion", STATEMENTS, "out[i] = 2.0f * out[i];"),
    ("implicit conversion", STATEMENTS, "int y = out[i];"),
    ("implicit conversion", "return T(x);", "T y = x; return y;"),
    ("recursion", OVERLOADS, "float again(float x) { return x > 1.0f ? again(x * 0.5f) : x; }"),
    ("recursion", OVERLOADS, "float one(float x); float two(float x) { return one(x); } float one(float x) { return two(x); }"),
    ("address", STATEMENTS, "b += float((ulong)x);"),
    ("address", STATEMENTS, "b += float(reinterpret_cast<uintptr_t>(row));"),
    ("address", STATEMENTS, "b += float(reinterpret_cast<ulong>(&n));"),
    ("address", OVERLOADS, "template <class P> bool odd(P p) { return (ulong)p & 1; } bool o(constant int* p) { return odd(p); }"),
    ("language", STATEMENTS, "auto [p, q] = a;"),
    ("language", OVERLOADS, "template <typename... A> METAL_FUNC float all(A... x) { return (x + ...); }"),
]  # fmt: skip


def test_clean_text():
    assert metal_lint.lint(CLEAN) == []
    assert metal_lint.lint(PRODUCT) == []
    assert metal_lint.lint_source(CLEAN) == []


@pytest.mark.parametrize("rule, place, planted", PLANTS, ids=lambda value: value)
def test_planted_line_is_found(rule, place, planted):
    assert CLEAN.count(place) == 1
    text = CLEAN.replace(place, planted)
    line = text.split("\n").index(next(row for row in text.split("\n") if planted in row)) + 1
    needs_clang = rule in ("implicit conversion", "recursion", "language", "address")
    if needs_clang:
        found = metal_lint.implicit_bfloat_and_language(text) + metal_lint.recursion(text)
    else:
        found = metal_lint.lint_source(text)
    assert {(finding.line, finding.rule) for finding in found} == {(line, rule)}, found


def test_complete_text_runs_all_rules_and_skips_leading_lines():
    text = CLEAN.replace(STATEMENTS, "float* p = a; out[i] = a[0];").replace(
        OVERLOADS, "\n#define LAMBDA [] { return 1; }\nint l = LAMBDA();"
    )
    found = metal_lint.lint(text)
    assert [finding.rule for finding in found] == ["lambda", "address space", "implicit conversion"]
    assert metal_lint.lint(text, skip=found[0].line) == found[1:]


def test_mlx_own_text_is_clean():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    from metal_emulator.capture import mlx_utils

    assert metal_lint.lint(mlx_utils()) == []


def test_command_line(tmp_path):
    good, bad = tmp_path / "good.metal", tmp_path / "bad.h"
    good.write_text(CLEAN)
    bad.write_text("struct Row { float* data; };\n")
    command = [sys.executable, str(Path(ROOT, "tools", "metal_lint.py"))]
    done = subprocess.run([*command, str(good), str(bad)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith(f"{bad}: line 1: address space:") and done.stdout.count("\n") == 1, done
    assert subprocess.run([*command, str(good)], capture_output=True, text=True).returncode == 0
