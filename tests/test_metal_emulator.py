"""The Metal emulator: what it computes, what it finds (each detector against a planted fault), what MLX's own kernels do in it."""

from __future__ import annotations

import os
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest

from metal_emulator import Buffer, Emulator, EmulatorError, KernelFault
from metal_emulator.compiler import HERE, compiler
from metal_texts import EXCHANGES, EXPRESSIONS, HEAD, PLANTS, PRODUCT, planted

try:
    compiler()
except EmulatorError as error:
    pytest.skip(str(error), allow_module_level=True)

ALL = [(build, order) for build in ("plain", "instrumented") for order in ("ascending", "descending")]
ROWS = 37  # three groups, the last of five rows


def one_kernel(body: str, parameters: str = "device float* out [[buffer(0)]]") -> str:
    return f"{HEAD}kernel void k({parameters}, uint lane [[thread_index_in_simdgroup]]) {{\n{body}\n}}\n"


def product(text: str, name: str, build: str, order: str):
    """Runs a kernel of PRODUCT's signature: (report, c, sums, what c and sums should be)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((ROWS, 16)).astype(np.float16), rng.standard_normal((16, 16)).astype(np.float16)
    groups = -(-ROWS // 16)
    c, scratch, sums = (np.zeros(shape, np.float32) for shape in ((ROWS, 16), (groups, 16), (groups, 16)))
    buffers = [a, Buffer(b, alignment=8), c, scratch, sums, np.array(ROWS, np.int32)]
    report = Emulator(build, order).launch(text, name, buffers, (64 * groups, 1, 1), (64, 1, 1))
    want = a.astype(np.float64) @ b.astype(np.float64)
    padded = np.zeros((16 * groups, 16))
    padded[:ROWS] = want
    return report, c, sums, want, padded.reshape(groups, 16, 16).sum(1)


# ---- a clean kernel --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build, order", ALL)
def test_clean_kernel_has_no_faults(build, order):
    report, c, sums, want_c, want_sums = product(PRODUCT, "product", build, order)
    assert report.check() is report
    np.testing.assert_allclose(c, want_c, atol=1e-5)
    np.testing.assert_allclose(sums, want_sums, atol=1e-5)
    assert (report.groups, report.threads, report.barriers, report.simdgroup_barriers) == (3, 192, 6, 6)
    assert report.multiplications == 3 * 2 * 4
    assert report.threadgroup_memory == 512 + 512 + 1024


def test_bytes_are_counted():
    report, c, sums, *_ = product(PRODUCT, "product", "instrumented", "ascending")
    a_tiles, b_tiles, scratch = 3 * 512, 3 * 512, sums.nbytes
    assert report.device_read == a_tiles + b_tiles + scratch
    assert report.device_written == c.nbytes + scratch + sums.nbytes
    left = right = 3 * 2 * 4 * 128  # groups, simdgroups, 8x8 matrices of halves
    stored = 3 * 1024
    column_sums, copied = 3 * 64 * 8 * 4, c.nbytes
    assert report.threadgroup_written == a_tiles + b_tiles + stored
    assert report.threadgroup_read == left + right + column_sums + copied
    counted = product(PRODUCT, "product", "counted", "ascending")[0].check()
    assert counted.device_written == report.device_written
    assert counted.device_read <= report.device_read and counted.threadgroup_read <= report.threadgroup_read


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_planted_fault_is_found(plant):
    for build in ("instrumented", "plain")[: 1 + plant.plain]:
        text = planted([p for p in PLANTS if p.plain or build == "instrumented"])
        for order in ("ascending", "descending"):
            report = product(text, plant.kernel(), build, order)[0]
            assert plant.kind in report.kinds(), f"{build}, {order}: {report.faults}"
            with pytest.raises(KernelFault, match=plant.kind):
                report.check()


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize(
    "body, racy",
    [
        # one threadgroup writes what it and another have read
        ("if (lane == 0) { const float x = out[0]; if (group == 1) out[0] = x + 1.0f; }", True),
        ("const float x = out[lane]; if (group == 1) out[32 + lane] = x;", False),
        # a lane writes what others of its simdgroup have read, before and after a simdgroup barrier
        ("float x = shared; if (lane == 1) shared = x;", True),
        ("float x = shared; simdgroup_barrier(mem_flags::mem_threadgroup); if (lane == 1) shared = x;", False),
        ("float x = lane == 0 ? shared : 0.0f; simdgroup_barrier(mem_flags::mem_threadgroup); if (lane == 1) shared += x;", False),
    ],
)
def test_writes_after_reads(body, racy, order):
    text = one_kernel(
        "threadgroup float shared; if (lane == 0) shared = 0.0f; threadgroup_barrier(mem_flags::mem_threadgroup);" + body,
        "device float* out [[buffer(0)]], uint group [[threadgroup_position_in_grid]]",
    )
    out = Buffer(np.zeros(64, np.float32), initialised=True)
    report = Emulator("instrumented", order).launch(text, "k", [out], (64, 1, 1), (32, 1, 1))
    assert report.kinds() == ({"race"} if racy else set()), report.faults


@pytest.mark.skipif(not shutil.which("addr2line"), reason="binutils' addr2line tells the lines of accesses")
def test_fault_names_line_and_thread():
    text, plant = planted(PLANTS), next(p for p in PLANTS if p.name == "read past the end")
    fault = product(text, plant.kernel(), "instrumented", "ascending")[0].faults[0]
    assert fault.source == "const half value = a[row * 16 + i % 16];"
    assert text.split("\n")[fault.line - 1].strip() == fault.source
    assert "'a'" in fault.text and "group 2" in fault.text


# ---- what operations compute -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build, order", ALL)
def test_exchanges(build, order):
    body = "const float x = float(int(lane * 7 % 32) - 10) * 0.5f;\n"
    body += "".join(f"out[{32 * i} + lane] = {text};\n" for i, text in enumerate(EXCHANGES))
    out = np.zeros((len(EXCHANGES), 32), np.float32)
    report = Emulator(build, order).launch(one_kernel(body), "k", [out], (32, 1, 1), (32, 1, 1))
    assert not report.faults
    x = (np.arange(32) * 7 % 32 - 10) * np.float32(0.5)
    for (text, want), found in zip(EXCHANGES.items(), out):
        np.testing.assert_allclose(found, want(x), rtol=1e-6, err_msg=text)


def test_expressions():
    body = "using V2 = vec<float, 2>;\n" + "".join(f"out[{i}] = {text};\n" for i, text in enumerate(EXPRESSIONS))
    out = np.zeros(len(EXPRESSIONS), np.float32)
    Emulator().launch(one_kernel(body), "k", [out], (1, 1, 1), (1, 1, 1)).check()
    for (text, want), found in zip(EXPRESSIONS.items(), out):
        assert found == want, text


@pytest.mark.parametrize("dtype, name", [(np.float32, "float"), (np.float16, "half"), (ml_dtypes.bfloat16, "bfloat")])
def test_operations_round_to_their_type(dtype, name):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 256)).astype(dtype)
    out = np.zeros((4, 256), dtype)
    text = (
        HEAD
        + f"""
template <typename T>
[[kernel]] void arithmetic(const device T* x [[buffer(0)]], const device T* y [[buffer(1)]], device T* out [[buffer(2)]],
                           uint i [[thread_position_in_grid]]) {{
  out[i] = x[i] + y[i];
  out[256 + i] = x[i] * y[i];
  out[512 + i] = x[i] / y[i];
  out[768 + i] = T(float(x[i]) * 3.0f);
}}
template [[host_name("arithmetic_t")]] [[kernel]] decltype(arithmetic<{name}>) arithmetic<{name}>;
"""
    )
    Emulator().launch(text, "arithmetic_t", [x, y, out], (256, 1, 1), (64, 1, 1)).check()
    wide = np.float32
    for found, want in zip(out, (x + y, x * y, x / y, (x.astype(wide) * wide(3)).astype(dtype))):
        np.testing.assert_array_equal(found.astype(wide), want.astype(wide))


def test_matrix_memory_and_layout():
    parameters = "const device float* x [[buffer(0)]], device float* out [[buffer(1)]]"
    body = """
      simdgroup_float8x8 plain, crossed, one = simdgroup_float8x8(2.0f);
      simdgroup_load(plain, x, 16, ulong2(3, 2));
      simdgroup_load(crossed, x, 16, ulong2(3, 2), true);
      simdgroup_multiply(plain, plain, one);
      simdgroup_store(plain, out, 8);
      simdgroup_store(crossed, out + 64, 8);
      out[128 + lane] = one.thread_elements()[0];
      out[160 + lane] = one.thread_elements()[1];"""
    x, out = np.arange(256, dtype=np.float32).reshape(16, 16), np.zeros(192, np.float32)
    Emulator("instrumented").launch(one_kernel(body, parameters), "k", [x, out], (32, 1, 1), (32, 1, 1)).check()
    np.testing.assert_array_equal(out[:64].reshape(8, 8), 2 * x[2:10, 3:11])
    np.testing.assert_array_equal(out[64:128].reshape(8, 8), x[3:11, 2:10].T)
    lane = np.arange(32)  # the diagonal in Apple's layout
    row, column = (lane // 4 & 4) + lane // 2 % 4, (lane // 4 & 2) * 2 + lane % 2 * 2
    np.testing.assert_array_equal(out[128:].reshape(2, 32), [2.0 * (row == column), 2.0 * (row == column + 1)])


@pytest.mark.parametrize("transpose_right", [False, True])
def test_matmul2d(transpose_right):
    # 16x16 fragments: a lane holds four neighbours of its row and of the row eight below
    text = (
        HEAD
        + f"""
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
kernel void k(const device half* a [[buffer(0)]], const device half* b [[buffer(1)]], device float* c [[buffer(2)]],
              ushort lane [[thread_index_in_simdgroup]]) {{
  constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(16, 32, 16, false, {str(transpose_right).lower()}, true,
      mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
  mpp::tensor_ops::matmul2d<shape, metal::execution_simdgroup> product;
  auto left = product.template get_left_input_cooperative_tensor<half, half, float>();
  auto right = product.template get_right_input_cooperative_tensor<half, half, float>();
  auto sum = product.template get_destination_cooperative_tensor<decltype(left), decltype(right), float>();
  const short quad = lane >> 2, row = (quad & 4) | ((lane >> 1) & 3), column = ((quad & 2) | (lane & 1)) * 4;
  for (short i = 0; i < 8; i++) left[i] = a[(row + i / 4 * 8) * 16 + column + i % 4];
  for (short i = 0; i < 16; i++) {{
    const short further = 16 * (i / 8), r = row + i / 4 % 2 * 8, n = column + i % 4;
    right[i] = {"b[(r + further) * 16 + n]" if transpose_right else "b[r * 32 + n + further]"};
    sum[i] = 1.0f;
  }}
  product.run(left, right, sum);
  for (short i = 0; i < 16; i++) c[(row + i / 4 % 2 * 8) * 32 + column + i % 4 + i / 8 * 16] = sum[i];
}}
"""
    )
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 32)).astype(np.float16)
    c = np.zeros((16, 32), np.float32)
    stored = np.ascontiguousarray(b.T) if transpose_right else b
    report = Emulator("instrumented").launch(text, "k", [a, stored, c], (32, 1, 1), (32, 1, 1)).check()
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64) + 1, atol=1e-5)
    assert report.multiplications == 16 and report.threadgroup_read == 0


@pytest.mark.parametrize("build", ["plain", "instrumented"])
def test_atomics(build):
    parameters = "const device int* x [[buffer(0)]], device atomic<float>* out [[buffer(1)]], uint i [[thread_position_in_grid]]"
    body = """
      threadgroup atomic_uint count;
      if (lane == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      atomic_fetch_add_explicit(&out[x[i]], 1.0f, memory_order_relaxed);
      atomic_fetch_max_explicit(&count, i, memory_order_relaxed);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (lane == 0) atomic_fetch_add_explicit(&out[7], float(atomic_load_explicit(&count, memory_order_relaxed)), memory_order_relaxed);"""
    x, out = np.random.default_rng(3).integers(0, 7, 96).astype(np.int32), np.zeros(8, np.float32)
    text = one_kernel(body, parameters)
    Emulator(build).launch(text, "k", [x, Buffer(out, initialised=True)], (96, 1, 1), (32, 1, 1)).check()
    np.testing.assert_array_equal(out, [*np.bincount(x, minlength=7), 31 + 63 + 95])
    if build == "instrumented":  # MLX's outputs hold nothing unless it is told to fill them
        assert Emulator(build).launch(text, "k", [x, out], (96, 1, 1), (32, 1, 1)).kinds() == {"uninitialised read"}


def test_attributes_and_partial_groups():
    words = [
        "thread_position_in_grid",
        "threads_per_grid",
        "threadgroup_position_in_grid",
        "threadgroups_per_grid",
        "thread_position_in_threadgroup",
        "threads_per_threadgroup",
        "dispatch_threads_per_threadgroup",
        "grid_size",
    ]
    single = [
        "thread_index_in_threadgroup",
        "thread_index_in_simdgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "dispatch_simdgroups_per_threadgroup",
        "threads_per_simdgroup",
        "thread_execution_width",
        "thread_index_in_quadgroup",
        "quadgroup_index_in_threadgroup",
    ]
    parameters = ", ".join(["device uint* out", *(f"uint3 {w} [[{w}]]" for w in words), *(f"uint {w} [[{w}]]" for w in single)])
    body = "device uint* row = out + 33 * (thread_position_in_grid.x + 45 * thread_position_in_grid.y);\n"
    body += "".join(f"for (int c = 0; c < 3; c++) row[{3 * i} + c] = {w}[c];\n" for i, w in enumerate(words))
    body += "".join(f"row[{24 + i}] = {w};\n" for i, w in enumerate(single))
    out = np.zeros((3, 45, 33), np.uint32)
    text = f"{HEAD}kernel void k({parameters}) {{\n{body}\n}}\n"
    Emulator("instrumented", "descending").launch(text, "k", [out], (45, 3, 1), (40, 2, 4)).check()
    for y in range(3):
        for x in range(45):
            group, inside = (x // 40, y // 2, 0), (x % 40, y % 2, 0)
            size = (40 if x < 40 else 5, 2 if y < 2 else 1, 1)
            index = inside[0] + size[0] * inside[1]
            vectors = [(x, y, 0), (45, 3, 1), group, (2, 2, 1), inside, size, (40, 2, 1), (45, 3, 1)]
            scalars = [index, index % 32, index // 32, -(-size[0] * size[1] // 32), 3, 32, 32, index % 4, index // 4]
            assert out[y, x].tolist() == [*np.ravel(vectors), *scalars], (x, y)


# ---- what Metal text may contain ---------------------------------------------------------------------------------------------------


def test_language():
    text = (
        HEAD
        + """
namespace own {
constant float TABLE[3] = {1.0f, 2.0f, 4.0f};
template <typename T> struct Row {
  T x;
  T twice() const { return x + x; }
  T twice() const device { return x; }
  T twice() const constant { return x; }
};
template <typename P> METAL_FUNC float first(P p) { return float(p[0]); }
METAL_FUNC float last(const constant int strides[2]) { return float(strides[1]); }
METAL_FUNC void add(thread float& x, const thread float2* y) { x += y->y; }
}
constant bool wanted [[function_constant(3)]];
constant int amount [[function_constant(4)]];
[[kernel, max_total_threads_per_threadgroup(64)]] void k(
    device float* out, constant int* strides, const device half* h [[buffer(5), function_constant(wanted)]],
    uint i [[thread_position_in_grid]]) {
  threadgroup float shared[4], other[2][2];
  alignas(16) threadgroup half aligned[8];
  threadgroup alignas(16) half too[8];
  threadgroup float* p = shared;
  if (i == 0) { p[1] = 3.0f; other[1][0] = 5.0f; }
  if (i == 0) *reinterpret_cast<threadgroup float4*>(aligned) = float4(0);
  if (i == 0) *reinterpret_cast<threadgroup float4*>(too) = float4(0);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  thread float2 pair{1, 2};
  float x = own::TABLE[2];
  own::add(x, &pair);
  const own::Row<float> row{10};
  out[0] = x; out[1] = row.twice(); out[2] = own::first(strides) + own::first(p + 1); out[3] = own::last(strides);
  out[4] = other[1][0]; out[5] = wanted ? float(h[0]) : -1.0f; out[6] = float(amount);
}
"""
    )
    out, strides = np.zeros(7, np.float32), np.array([6, 7], np.int32)
    emulator = Emulator("instrumented")
    emulator.launch(text, "k", [out, strides, None], (1, 1, 1), (1, 1, 1), {4: -9}).check()
    assert out.tolist() == [6, 20, 9, 7, 5, -1, -9]
    emulator.launch(text, "k", [out, strides, np.array([8], np.float16)], (1, 1, 1), (1, 1, 1), {3: 1}).check()
    assert out[5:].tolist() == [8, 0]


@pytest.mark.parametrize(
    "body, message",
    [
        ("out[0] = nothing;", "kernel.metal:5:.*undeclared identifier 'nothing'"),
        ("threadgroup float* p = out;", "kernel.metal:5:.*cannot initialize a variable"),
        ("half h = 1.0h; bfloat b = h;", "kernel.metal:5:.*cannot initialize"),
        ("out[0] = float4(1, 2).x;", "wrong number of vector components"),
    ],
)
def test_text_that_does_not_compile(body, message):
    with pytest.raises(EmulatorError, match=message):
        Emulator().launch(one_kernel(body), "k", [np.zeros(8, np.float32)], (1, 1, 1), (1, 1, 1))


# ---- buffers and limits ------------------------------------------------------------------------------------------------------------


def test_outputs_hold_nan_until_written():
    out = np.zeros(64, np.float32)
    Emulator().launch(one_kernel("if (lane < 8) out[lane] = 1.0f;"), "k", [out], (32, 1, 1), (32, 1, 1)).check()
    assert (out[:8] == 1).all() and np.isnan(out[8:]).all()


def test_buffers_are_views_of_memory():
    memory = np.arange(64, dtype=np.int32)
    out = np.zeros((4, 8), np.int32)
    text = one_kernel("out[-8 * int(lane)] = x[-3 * int(lane)];", "const device int* x [[buffer(0)]], device int* out [[buffer(1)]]")
    Emulator("instrumented").launch(text, "k", [memory[60::-3], out[::-1, 2]], (4, 1, 1), (4, 1, 1)).check()
    assert out[::-1, 2].tolist() == [60, 57, 54, 51] and out.sum() == 222


def test_limits():
    text = one_kernel("out[0] = 1.0f;")
    out = np.zeros(8, np.float32)
    assert "1025 threads" in str(Emulator().launch(text, "k", [out], (2000, 1, 1), (1025, 1, 1)).faults[0])
    assert "positive" in str(Emulator().launch(text, "k", [out], (0, 1, 1), (32, 1, 1)).faults[0])
    assert "ASCII" in str(Emulator().launch(text + "// \u00e9\n", "k", [out], (1, 1, 1), (1, 1, 1)).faults[0])
    many = ", ".join(f"device float* b{i}" for i in range(32))
    report = Emulator().launch(one_kernel("b31[0] = 1.0f;", many), "k", [out] * 32, (1, 1, 1), (1, 1, 1))
    assert report.kinds() == {"limit"} and "31 buffers" in report.faults[0].text
    mlx_text = text.replace("void k(", "void custom_kernel_k(const device float* x [[buffer(1)]], ")
    with pytest.raises(EmulatorError, match="fewer as constant"):
        Emulator().launch(mlx_text, "custom_kernel_k", [np.zeros(7, np.float32), out], (1, 1, 1), (1, 1, 1))
    with pytest.raises(EmulatorError, match="items of 4 bytes for 'x', found float16"):
        Emulator().launch(mlx_text, "custom_kernel_k", [np.zeros(8, np.float16), out], (1, 1, 1), (1, 1, 1))
    with pytest.raises(EmulatorError, match=r"expected 1 for k \(out\), found 2"):
        Emulator().launch(text, "k", [out, out], (1, 1, 1), (1, 1, 1))
    with pytest.raises(EmulatorError, match=r"expected one of \['k'\], found 'other'"):
        Emulator().launch(text, "other", [out], (1, 1, 1), (1, 1, 1))


def test_missing_compiler_is_said(monkeypatch, tmp_path):
    old = tmp_path / "clang++"  # Debian's plain clang++ may be older than what the emulator needs
    old.write_text("#!/bin/sh\necho Debian clang version 14.0.6\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"expected clang\+\+ 17 or newer .* found none; .*apt-get install clang-19"):
        compiler.__wrapped__()


@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu"])
def test_switch_assembles_for_both_processors(target, tmp_path):
    command = [compiler(), f"--target={target}", "-std=c++20", "-nostdinc", "-x", "c++", "-c", "-", "-o", str(tmp_path / "context.o")]
    text = '#include "context.h"\nvoid* stack(char* top, void (*entry)()) { return emulator::fresh_stack(top, entry); }'
    done = subprocess.run([*command, "-I", str(HERE / "runtime")], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_are_cached_by_their_text(tmp_path):
    text = one_kernel("out[0] = 5.0f;")
    out = np.zeros(1, np.float32)
    emulator = Emulator(cache_dir=tmp_path)
    emulator.launch(text, "k", [out], (1, 1, 1), (1, 1, 1)).check()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}
    assert len(before) == 2  # the runtime and the kernel
    Emulator(cache_dir=tmp_path).compiler.module(text, "plain")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}
    os.utime(HERE / "shim" / "metal.h")  # a checkout that comes and goes changes file times only
    Emulator(cache_dir=tmp_path).compiler.module(text.replace("5.0f", "6.0f"), "plain")
    assert len(list(tmp_path.rglob("*.so"))) == 3
