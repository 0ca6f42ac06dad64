"""Metal texts written for the emulator's tests: a kernel with every kind of synchronisation, and the faults planted in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

HEAD = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n"

# c = a b for ragged rows of 16, 16 rows a threadgroup of two simdgroups, and the column sums of each group's rows, which the first
# simdgroup hands to the second through device memory.
PRODUCT = (
    HEAD
    + """
kernel void product(
    const device half* a [[buffer(0)]],
    const device half* b [[buffer(1)]],
    device float* c [[buffer(2)]],
    device float* scratch [[buffer(3)]],
    device float* sums [[buffer(4)]],
    const constant int& rows [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint part [[simdgroup_index_in_threadgroup]]) {
  threadgroup half4 b_tile[64];
  threadgroup half a_tile[2 * 128];
  threadgroup float c_tile[2 * 128];
  threadgroup half* const my_a = a_tile + 128 * part;
  threadgroup float* const my_c = c_tile + 128 * part;
  const int first = int(group.x) * 16 + int(part) * 8;
  const int last = rows - 1;

  b_tile[thread_index] = *reinterpret_cast<const device half4*>(b + 4 * thread_index);
  for (int i = lane; i < 128; i += 32) {
    const int row = first + i / 16;
    const half value = a[min(row, last) * 16 + i % 16];
    my_a[i] = row < rows ? value : half(0);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // tiles are written
  for (int n = 0; n < 16; n += 8) {
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (int k = 0; k < 16; k += 8) {
      simdgroup_half8x8 left, right;
      simdgroup_load(left, my_a + k, 16);
      simdgroup_load(right, reinterpret_cast<threadgroup half*>(b_tile) + 16 * k + n, 16);
      simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, my_c + n, 16);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);  // my_c is written

  float total = 0.0f;
  for (int i = 0; i < 8; i++) total += my_c[16 * i + lane % 16];
  for (int i = lane; i < 128; i += 32) {
    if (first + i / 16 < rows) c[first * 16 + i] = my_c[i];
  }
  const uint column = group.x * 16 + lane;
  if (part == 0 && lane < 16) scratch[column] = total;
  threadgroup_barrier(mem_flags::mem_device);  // scratch is written
  if (part == 1 && lane < 16) sums[column] = scratch[column] + total;
}
"""
)


class Plant(NamedTuple):
    """A fault: what replaces what, which kinds of fault must be reported, and whether the plain build sees it, too."""

    name: str
    old: str
    new: str
    kind: str
    plain: bool = False

    def kernel(self) -> str:
        """The name of its kernel in planted()."""
        return "product_" + "".join(c if c.isalnum() else "_" for c in self.name)


def planted(plants) -> str:
    """One text with a kernel for each: compiling them together takes a fraction of the time."""
    kernels = [HEAD]
    for plant in plants:
        assert PRODUCT.count(plant.old) == 1, plant.name
        kernels.append(PRODUCT[len(HEAD) :].replace(plant.old, plant.new).replace("void product(", f"void {plant.kernel()}("))
    return "".join(kernels)


TILES = "threadgroup_barrier(mem_flags::mem_threadgroup);  // tiles are written"
MINE = "simdgroup_barrier(mem_flags::mem_threadgroup);  // my_c is written"
SCRATCH = "threadgroup_barrier(mem_flags::mem_device);  // scratch is written"
STORE = "if (first + i / 16 < rows) c[first * 16 + i] = my_c[i];"
PLANTS = (
    Plant("no barrier between two simdgroups", TILES, "simdgroup_barrier(mem_flags::mem_threadgroup);", "race"),
    Plant("no barrier at all", TILES, "", "race"),
    Plant("barrier that orders nothing", TILES, "threadgroup_barrier(mem_flags::mem_none);", "race"),
    Plant("barrier for the other memory", TILES, "threadgroup_barrier(mem_flags::mem_device);", "race"),
    Plant("no barrier between lanes of a simdgroup", MINE, "", "race"),
    Plant("simdgroup barrier that orders nothing", MINE, "simdgroup_barrier(mem_flags::mem_none);", "race"),
    Plant("no barrier for device memory", SCRATCH, "", "race"),
    Plant("threadgroup barrier for the other memory", SCRATCH, "threadgroup_barrier(mem_flags::mem_threadgroup);", "race"),
    Plant("tile overwritten while it is read", STORE, "b_tile[thread_index] = half4(0);" + STORE, "race"),
    Plant("one simdgroup overwrites what the other may still read", STORE, "if (part == 1) b_tile[lane] = half4(0);" + STORE, "race"),
    Plant("one simdgroup overwrites the other's tile", STORE, "if (part == 1) a_tile[lane] = half(0);" + STORE, "race"),
    Plant("what all have read is overwritten after a barrier that orders nothing", STORE,
          "threadgroup_barrier(mem_flags::mem_none); if (part == 0) b_tile[lane] = half4(0);" + STORE, "race"),
    Plant("two threadgroups write the same elements", "c[first * 16 + i] = my_c[i]", "c[8 * part * 16 + i] = my_c[i]", "race"),
    Plant("read past the end", "a[min(row, last) * 16 + i % 16]", "a[row * 16 + i % 16]", "out of bounds"),
    Plant("read before the start", "b + 4 * thread_index)", "b + 4 * (int(thread_index) - 1))", "out of bounds"),
    Plant("write past the end", STORE, "c[first * 16 + i] = my_c[i];", "out of bounds", plain=True),
    Plant("write to an input", STORE, STORE + "((device half*)a)[lane] = half(0);", "out of bounds"),
    Plant("wild pointer", STORE, "c[(long(first) << 40) + i] = my_c[i];", "out of bounds", plain=True),
    Plant("threadgroup array a row short", "c_tile[2 * 128]", "c_tile[2 * 128 - 16]", "out of bounds"),
    Plant("tail rows not filled", "my_a[i] = row < rows ? value : half(0);", "if (row < rows) my_a[i] = value;", "uninitialised read"),
    Plant("output used before it is written", "] = my_c[i];", "] += my_c[i];", "uninitialised read"),
    Plant("part of the tile not copied", "b_tile[thread_index] =", "if (thread_index < 60) b_tile[thread_index] =", "uninitialised read"),
    Plant("threads return before a barrier", MINE, MINE + "\nif (first > rows) return;", "divergence", plain=True),
    Plant("a simdgroup skips a barrier", SCRATCH, "if (part == 0) " + SCRATCH, "divergence", plain=True),
    Plant("simdgroups at different barriers", SCRATCH, f"if (part == 0) {SCRATCH}\n else {SCRATCH}", "divergence", plain=True),
    Plant("half a simdgroup multiplies", "simdgroup_multiply_acc", "if (lane < 16) simdgroup_multiply_acc", "divergence", plain=True),
    Plant("half a simdgroup shuffles", STORE, "if (lane < 16) total = simd_sum(total);" + STORE, "divergence", plain=True),
    Plant("lanes in different exchanges", STORE, "total = lane % 2 ? simd_sum(total) : simd_max(total);" + STORE, "divergence", plain=True),
    Plant("vector load at odd elements", "b + 4 * thread_index)", "b + 4 * thread_index + (thread_index < 63))", "misaligned access"),
    Plant("wider load than the buffer's alignment", "*reinterpret_cast<const device half4*>(b + 4 * thread_index)",
          "reinterpret_cast<const device float4*>(b + 8 * (thread_index / 2))->x > 0 ? half4(0) : half4(1)", "misaligned access"),
    Plant("vector access to an array of halves", STORE, STORE + "total += float(reinterpret_cast<threadgroup half4*>(my_a)[lane].x);",
          "misaligned access"),
    Plant("too much threadgroup memory", STORE, "threadgroup float big[8000]; big[thread_index] = total;" + STORE, "limit", plain=True),
)  # fmt: skip

# One row of 32 results for each operation of a simdgroup; x[lane] is the operand, one lane of 32 a column.
EXCHANGES = {
    "simd_sum(x)": lambda x: [x.sum()] * 32,
    "simd_max(x)": lambda x: [x.max()] * 32,
    "simd_min(x)": lambda x: [x.min()] * 32,
    "simd_product(select(1.0f, x, lane < 3))": lambda x: [x[0] * x[1] * x[2]] * 32,
    "simd_prefix_inclusive_sum(x)": lambda x: x.cumsum(),
    "simd_prefix_exclusive_sum(x)": lambda x: x.cumsum() - x,
    "simd_broadcast(x, 5)": lambda x: [x[5]] * 32,
    "simd_broadcast_first(x)": lambda x: [x[0]] * 32,
    "simd_shuffle(x, ushort(31 - lane))": lambda x: x[::-1],
    "simd_shuffle_xor(x, 9)": lambda x: [x[i ^ 9] for i in range(32)],
    "simd_shuffle_up(x, 3)": lambda x: [x[i - 3] if i >= 3 else x[i] for i in range(32)],
    "simd_shuffle_down(x, 3)": lambda x: [x[i + 3] if i < 29 else x[i] for i in range(32)],
    "simd_shuffle_rotate_up(x, 3)": lambda x: [x[(i - 3) % 32] for i in range(32)],
    "simd_shuffle_rotate_down(x, 3)": lambda x: [x[(i + 3) % 32] for i in range(32)],
    "simd_shuffle_and_fill_up(x, -x, 3)": lambda x: [x[i - 3] if i >= 3 else -x[i - 3] for i in range(32)],
    "simd_shuffle_and_fill_down(x, -x, 3)": lambda x: [x[i + 3] if i < 29 else -x[i - 29] for i in range(32)],
    "float(popcount(uint(ulong(simd_ballot(x > 4.0f)))))": lambda x: [(x > 4).sum()] * 32,
    "float(simd_any(x > 4.0f)) + 2.0f * float(simd_all(x > 4.0f))": lambda x: [float((x > 4).any()) + 2 * float((x > 4).all())] * 32,
    "float(simd_xor(uint(lane * 3)))": lambda x: [float(np.bitwise_xor.reduce(3 * np.arange(32)))] * 32,
    "float(simd_or(lane))": lambda x: [31.0] * 32,
    "float(simd_and(lane | 4))": lambda x: [4.0] * 32,
    "quad_sum(x)": lambda x: x.reshape(8, 4).sum(1).repeat(4),
    "quad_max(x)": lambda x: x.reshape(8, 4).max(1).repeat(4),
    "simd_sum(float2(x, 1.0f)).y": lambda x: [32.0] * 32,
    "simd_shuffle(float4(x, 0, 0, 2.0f * x), 7).w": lambda x: [2 * x[7]] * 32,
}

# One float for each expression: vectors, bits, literals, and rules that differ from plain C++.
EXPRESSIONS = {
    "float4(1, float2(2, 3), 4).w": 4,
    "float4(7).z": 7,
    "float3(float4(1, 2, 3, 4).wzy).x": 4,
    "vec<half, 2>(half(1.5f), half(2)).y": 2,
    "metal::vec<int, 4>(1, 2, 3, 4).zw.y": 4,
    "V2(3, 4).y": 4,
    "float(as_type<ushort2>(as_type<uint>(1.0f)).y)": 0x3F80,
    "float(sizeof(1.0))": 4,
    "float(half(2049.0f))": 2048,
    "float(half(2048) + half(1))": 2048,
    "float(1.0h / 3.0h) * 4096.0f": 1365,
    "float(bfloat(257.0f))": 256,
    "float(bfloat(256.0f) + bfloat(1.0f))": 256,
    "float(1.5bf)": 1.5,
    "max(1.0f, NAN)": 1,
    "min(NAN, 2.0f)": 2,
    "float(mulhi(0x80000000u, 6u))": 3,
    "float(clz(uint(1)) + ctz(uint(8)) + popcount(uint(7)))": 37,
    "float(rotate(0x80000001u, 1u))": 3,
    "fast::exp2(3.0f) + precise::sqrt(16.0f)": 12,
    "exp2(float2(1, 2)).y": 4,
    "dot(float3(1, 2, 3), float3(4, 5, 6))": 32,
    "clamp(5.0f, 0.0f, 2.0f) + float(clamp(5, 0, 3)) + saturate(2.0f)": 6,
    "select(1.0f, 2.0f, true)": 2,
    "select(float2(1, 2), float2(3, 4), float2(0, 5) > float2(1, 1)).y": 4,
    "float(any(int2(0, 1) == int2(1, 1))) + float(all(int2(1, 1) == int2(1, 1)))": 2,
    "fma(2.0f, 3.0f, 4.0f) + ldexp(1.0f, 3)": 18,
    "round(2.5f) + rint(2.5f)": 5,
    "numeric_limits<half>::max() / 65504.0h": 1,
    "float(metal::is_same_v<metal::remove_addrspace_t<const constant float>, const float>)": 1,
}
