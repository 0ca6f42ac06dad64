// Products by the tensor operations of Metal 4: 16 rows of a simdgroup by 32 columns, 16 deep, every factor and sum in registers. Apple
// does not say where an element of such a factor lives; this is what MLX relies on: 16x16 fragments, of which a lane holds four neighbours
// of its row (Lane: row; from column 4 pair) and of the row eight below. So scores become a left factor where they are.
#pragma once
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
#include "rows.metal"
namespace fa {
typedef metal::vec<Element, 4> ElementQuad;
FA_FN ElementQuad quad_of(float4 v) {
  ElementQuad quad;
  FA_UNROLL for (int i = 0; i < 4; i++) { quad[i] = Element(v[i]); }
  return quad;
}
// What a lane has of a 16x16 fragment of a factor: of rows Lane.row and Lane.row + 8.
struct Fragment {
  ElementQuad at[2];
};
// What it has of a sum, 16 rows by 32 columns: of two fragments side by side.
struct Sum {
  float4 at[2][2];  // [fragment][row]
};
FA_FN Sum zero_sum() {
  Sum sum;
  FA_UNROLL for (int i = 0; i < 4; i++) { sum.at[i / 2][i % 2] = float4(0.0f); }
  return sum;
}
// sum += a * (b0 | b1), or sum += a * (b0 over b1)^T if TRANSPOSED.
template <bool TRANSPOSED>
FA_FN void add_product(thread Sum& sum, Fragment a, Fragment b0, Fragment b1) {
  // relaxed precision is about float32 factors, which there are none of
  constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(16, 32, 16, false, TRANSPOSED, true,
                                                              mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
  mpp::tensor_ops::matmul2d<shape, metal::execution_simdgroup> product;
  auto left = product.template get_left_input_cooperative_tensor<Element, Element, float>();
  auto right = product.template get_right_input_cooperative_tensor<Element, Element, float>();
  auto total = product.template get_destination_cooperative_tensor<metal::remove_addrspace_t<decltype(left)>,
                                                                   metal::remove_addrspace_t<decltype(right)>, float>();
  FA_UNROLL for (int i = 0; i < 8; i++) {
    left[i] = a.at[i / 4][i % 4];
    right[i] = b0.at[i / 4][i % 4];
    right[8 + i] = b1.at[i / 4][i % 4];
  }
  FA_UNROLL for (int i = 0; i < 16; i++) { total[i] = sum.at[i / 8][i / 4 % 2][i % 4]; }
  product.run(left, right, total);
  FA_UNROLL for (int i = 0; i < 16; i++) { sum.at[i / 8][i / 4 % 2][i % 4] = total[i]; }
}

// A row is dealt to its four lanes in chunks of eight elements, 16 bytes: a chunk is what a lane has of its row in two fragments. That
// permutes every 32 elements, the same for both factors of a contraction, and undone where results are stored.
constant constexpr const int CHUNK = 8, SPAN = 4 * CHUNK;
template <int DIM>
struct Spans {
  enum { COUNT = (DIM + SPAN - 1) / SPAN };
};
struct Chunk {
  ElementQuad at[2];  // of the first and of the second fragment
};
FA_FN Chunk zero_chunk() { return Chunk{{quad_of(float4(0.0f)), quad_of(float4(0.0f))}}; }
// The lane's chunk of a row of `dim` elements that are `step` apart, zeros behind its end; with VECTOR dim is DIM, a multiple of eight,
// step is 1 and the row lies at a multiple of 16 bytes.
template <int DIM, bool VECTOR, class P>
FA_FN Chunk read_chunk(P row, Int64 step, int dim, int span, Lane l) {
  const int first = SPAN * span + CHUNK * int(l.pair);
  Chunk chunk = zero_chunk();
  if constexpr (VECTOR) {
    if (SPAN * (span + 1) <= DIM || first < DIM) {
      const uint4 words = load_words(row + first);
      chunk.at[0] = as_type<ElementQuad>(words.xy);
      chunk.at[1] = as_type<ElementQuad>(words.zw);
    }
  } else {
    FA_UNROLL for (int i = 0; i < CHUNK; i++) {
      if (first + i < dim) {
        chunk.at[i / 4][i % 4] = row[(first + i) * step];
      }
    }
  }
  return chunk;
}
template <int DIM, bool VECTOR, class T>
FA_FN void store_chunk(device T* row, int dim, int span, float4 a, float4 b, Lane l) {
  const int first = SPAN * span + CHUNK * int(l.pair);
  if constexpr (VECTOR && sizeof(T) == sizeof(Element)) {
    if (SPAN * (span + 1) <= DIM || first < DIM) {
      *reinterpret_cast<device uint4*>(row + first) = uint4(as_type<uint2>(quad_of(a)), as_type<uint2>(quad_of(b)));
    }
  } else {
    FA_UNROLL for (int i = 0; i < CHUNK; i++) {
      if (first + i < dim) {
        row[first + i] = T(i < 4 ? a[i % 4] : b[i % 4]);
      }
    }
  }
}
// The fragment number `fragment` of two rows' chunks.
FA_FN Fragment fragment_of(Chunk upper, Chunk lower, int fragment) { return Fragment{{upper.at[fragment], lower.at[fragment]}}; }
// Of the four lanes of a row, for two rows.
FA_FN float2 row_max(float2 v) {
  v = metal::max(v, shuffled(v, 1));
  return metal::max(v, shuffled(v, 8));
}
FA_FN float2 row_sum(float2 v) {
  v += shuffled(v, 1);
  return v + shuffled(v, 8);
}
}  // namespace fa
