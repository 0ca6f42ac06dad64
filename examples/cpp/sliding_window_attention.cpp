// Sliding windows: each row sees the keys within (left, right) of its own position; -1 is no limit.
#include "example.h"

int main() {
  const example::Sizes sizes{.batch = 1, .rows = 150, .keys = 150, .heads = 2, .kv_heads = 2, .dim = 64};
  const example::Array q = example::random_array(sizes.q_count(), 1), k = example::random_array(sizes.k_count(), 2),
                       v = example::random_array(sizes.k_count(), 3);
  example::Array out(q.size()), lse(static_cast<size_t>(sizes.lse_count()));

  fa::Call call("sliding_window_attention", fa::Pass::forward);
  call[fa::Role::q] = sizes.q(q);
  call[fa::Role::k] = sizes.k(k);
  call[fa::Role::v] = sizes.k(v);
  call[fa::Role::out] = sizes.q(out);
  call[fa::Role::lse] = sizes.lse(lse);
  const double scale = 1 / std::sqrt(static_cast<double>(sizes.dim));
  for (const example::Window window : {example::Window{-1, -1}, example::Window{16, 16}, example::Window{32, 0}}) {
    call.options.left = window.left;
    call.options.right = window.right;
    fa::run(call);
    char what[64];
    std::snprintf(what, sizeof(what), "window (%d, %d)", static_cast<int>(window.left), static_cast<int>(window.right));
    example::expect_close(what, out, example::plain_attention(sizes, q, k, v, scale, window));
  }
}
