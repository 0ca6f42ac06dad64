// Grouped heads: h query heads read h / kv_heads of them to one head of keys and values (one in all: multi-query).
#include "example.h"

int main() {
  for (const int64_t kv_heads : {8, 2, 1}) {
    const example::Sizes sizes{.batch = 1, .rows = 33, .keys = 90, .heads = 8, .kv_heads = kv_heads, .dim = 32};
    const example::Array q = example::random_array(sizes.q_count(), 1), k = example::random_array(sizes.k_count(), 2),
                         v = example::random_array(sizes.k_count(), 3);
    example::Array out(q.size()), lse(static_cast<size_t>(sizes.lse_count()));

    fa::Call call("gqa_attention", fa::Pass::forward);
    call[fa::Role::q] = sizes.q(q);
    call[fa::Role::k] = sizes.k(k);
    call[fa::Role::v] = sizes.k(v);
    call[fa::Role::out] = sizes.q(out);
    call[fa::Role::lse] = sizes.lse(lse);
    call.options.causal = true;  // 33 rows are the last of 90: row i sees keys up to i + 90 - 33
    fa::run(call);

    char what[64];
    std::snprintf(what, sizeof(what), "8 query heads, %d key/value heads", static_cast<int>(kv_heads));
    const double scale = 1 / std::sqrt(static_cast<double>(sizes.dim));
    example::expect_close(what, out, example::plain_attention(sizes, q, k, v, scale, {-1, 0}));
  }
}
