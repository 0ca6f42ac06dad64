// Generating text: the prompt fills a cache of keys and values, then each step appends one token and attends to all before it.
#include <algorithm>

#include "example.h"

int main() {
  constexpr int64_t CAPACITY = 64, PROMPT = 20, STEPS = 12;
  const example::Sizes cache{.batch = 2, .rows = 0, .keys = CAPACITY, .heads = 8, .kv_heads = 2, .dim = 32};
  example::Sizes all = cache;  // what the whole sequence amounts to
  all.rows = all.keys = PROMPT + STEPS;
  const example::Array q = example::random_array(all.q_count(), 1), k = example::random_array(all.k_count(), 2),
                       v = example::random_array(all.k_count(), 3);
  const double scale = 1 / std::sqrt(static_cast<double>(all.dim));
  const example::Array expected = example::plain_attention(all, q, k, v, scale, {-1, 0});

  example::Array k_cache(static_cast<size_t>(cache.k_count())), v_cache(k_cache.size());
  // rows [first, first + count) of every sequence of an array with `width` numbers a row
  const auto rows_of = [&](const example::Array& array, int64_t width, int64_t first, int64_t count) {
    example::Array part;
    for (int64_t b = 0; b < all.batch; b++) {
      const auto from = array.begin() + (b * all.rows + first) * width;
      part.insert(part.end(), from, from + count * width);
    }
    return part;
  };
  const auto attend = [&](int64_t first, int64_t count) {
    example::Sizes now = cache;
    now.rows = now.keys = count;
    const int64_t q_width = all.heads * all.dim, k_width = all.kv_heads * all.dim;
    const example::Array new_q = rows_of(q, q_width, first, count), new_k = rows_of(k, k_width, first, count),
                         new_v = rows_of(v, k_width, first, count);
    example::Array out(new_q.size()), lse(static_cast<size_t>(now.lse_count()));
    fa::Call call("kv_cache_inference", fa::Pass::forward);
    call[fa::Role::q] = now.q(new_q);
    call[fa::Role::k] = cache.k(k_cache);
    call[fa::Role::v] = cache.k(v_cache);
    call[fa::Role::new_k] = now.k(new_k);
    call[fa::Role::new_v] = now.k(new_v);
    call[fa::Role::out] = now.q(out);
    call[fa::Role::lse] = now.lse(lse);
    call.options.cache_length = first;
    call.options.causal = true;
    fa::run(call);
    example::expect_close(count > 1 ? "prefill" : "decode", out, rows_of(expected, q_width, first, count));
  };

  attend(0, PROMPT);
  for (int64_t step = 0; step < STEPS; step++) attend(PROMPT + step, 1);
}
