// What the C++ examples share: arrays of random numbers, attention as three plain loops, and the comparison with it.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "flash_attn/flash_attn.h"

namespace example {
using Array = std::vector<float>;

inline Array random_array(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Array array(static_cast<size_t>(count));
  for (float& x : array) x = normal(generator);
  return array;
}

// Sizes of one call; arrays are (batch, rows, heads, dim) and (batch, keys, kv_heads, dim), contiguous.
struct Sizes {
  int64_t batch, rows, keys, heads, kv_heads, dim;
  int64_t q_count() const { return batch * rows * heads * dim; }
  int64_t k_count() const { return batch * keys * kv_heads * dim; }
  int64_t lse_count() const { return batch * heads * rows; }
  fa::Tensor q(const Array& a) const { return fa::tensor(a.data(), fa::DType::f32, {batch, rows, heads, dim}); }
  fa::Tensor k(const Array& a) const { return fa::tensor(a.data(), fa::DType::f32, {batch, keys, kv_heads, dim}); }
  fa::Tensor lse(const Array& a) const { return fa::tensor(a.data(), fa::DType::f32, {batch, heads, rows}); }
};

// Key j is visible to row i iff i + keys - rows - left <= j <= i + keys - rows + right; -1: no limit on that side.
struct Window {
  int64_t left = -1, right = -1;
  bool sees(int64_t diagonal, int64_t key) const { return (left < 0 || key >= diagonal - left) && (right < 0 || key <= diagonal + right); }
};

// softmax(scale q k^T) v by its definition, in double
inline Array plain_attention(const Sizes& s, const Array& q, const Array& k, const Array& v, double scale, Window window) {
  Array out(static_cast<size_t>(s.q_count()));
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t i = 0; i < s.rows; i++)
      for (int64_t h = 0; h < s.heads; h++) {
        const int64_t kv_head = h / (s.heads / s.kv_heads), at = ((b * s.rows + i) * s.heads + h) * s.dim;
        std::vector<double> sum(static_cast<size_t>(s.dim));
        double weights = 0;
        for (int64_t j = 0; j < s.keys; j++) {
          if (!window.sees(i + s.keys - s.rows, j)) continue;
          const int64_t key_at = ((b * s.keys + j) * s.kv_heads + kv_head) * s.dim;
          double score = 0;
          for (int64_t t = 0; t < s.dim; t++) score += static_cast<double>(q[at + t]) * k[key_at + t];
          const double weight = std::exp(scale * score);
          weights += weight;
          for (int64_t t = 0; t < s.dim; t++) sum[t] += weight * v[key_at + t];
        }
        for (int64_t t = 0; t < s.dim; t++) out[at + t] = static_cast<float>(weights > 0 ? sum[t] / weights : 0);
      }
  return out;
}

// Prints the largest difference; ends the program with 1 if it is more than rounding, or not a number.
inline void expect_close(const char* what, const Array& found, const Array& expected, double tolerance = 1e-5) {
  double worst = found.size() == expected.size() ? 0 : INFINITY;
  for (size_t i = 0; i < expected.size() && i < found.size(); i++) {
    const double difference = std::abs(static_cast<double>(found[i]) - expected[i]);
    if (!(difference <= worst)) worst = difference;
  }
  std::printf("%-44s largest difference %.1e\n", what, worst);
  if (worst <= tolerance) return;
  std::printf("expected at most %.1e\n", tolerance);
  std::exit(1);
}
}  // namespace example
