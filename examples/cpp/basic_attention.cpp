// Attention on plain memory: full, causal, and with a scale of one's own.
#include "example.h"

int main() {
  const example::Sizes sizes{.batch = 2, .rows = 70, .keys = 70, .heads = 4, .kv_heads = 4, .dim = 64};
  const example::Array q = example::random_array(sizes.q_count(), 1), k = example::random_array(sizes.k_count(), 2),
                       v = example::random_array(sizes.k_count(), 3);
  example::Array out(q.size()), lse(static_cast<size_t>(sizes.lse_count()));

  fa::Call call("basic_attention", fa::Pass::forward);
  call[fa::Role::q] = sizes.q(q);
  call[fa::Role::k] = sizes.k(k);
  call[fa::Role::v] = sizes.k(v);
  call[fa::Role::out] = sizes.q(out);
  call[fa::Role::lse] = sizes.lse(lse);
  fa::run(call);
  const double scale = 1 / std::sqrt(static_cast<double>(sizes.dim));
  example::expect_close("full", out, example::plain_attention(sizes, q, k, v, scale, {}));

  call.options.causal = true;
  fa::run(call);
  example::expect_close("causal", out, example::plain_attention(sizes, q, k, v, scale, {-1, 0}));

  call.options.scale = 0.05;
  fa::run(call);
  example::expect_close("causal, scale 0.05", out, example::plain_attention(sizes, q, k, v, 0.05, {-1, 0}));

  std::printf("%s\n", fa::explain(call).c_str());
}
