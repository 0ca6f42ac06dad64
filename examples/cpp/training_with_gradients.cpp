// Gradients: forward keeps (out, lse), backward turns d(loss)/d(out) into d(loss)/d(q, k, v). Checked by central differences.
#include "example.h"

namespace {
const example::Sizes SIZES{.batch = 1, .rows = 24, .keys = 24, .heads = 2, .kv_heads = 1, .dim = 16};

struct Arrays {
  example::Array q = example::random_array(SIZES.q_count(), 1), k = example::random_array(SIZES.k_count(), 2),
                 v = example::random_array(SIZES.k_count(), 3);
};

// loss = sum(weights * attention(q, k, v)), in double
double loss(const Arrays& a, const example::Array& weights) {
  const double scale = 1 / std::sqrt(static_cast<double>(SIZES.dim));
  const example::Array out = example::plain_attention(SIZES, a.q, a.k, a.v, scale, {-1, 0});
  double sum = 0;
  for (size_t i = 0; i < out.size(); i++) sum += static_cast<double>(out[i]) * weights[i];
  return sum;
}

// d(loss)/d(array[i]) for every 7th element, the others taken from `found`
example::Array differences(Arrays& a, example::Array& array, const example::Array& weights, const example::Array& found) {
  constexpr float STEP = 0.01f;
  example::Array slopes = found;
  for (size_t i = 0; i < array.size(); i += 7) {
    const float middle = array[i];
    array[i] = middle + STEP;
    const double above = loss(a, weights);
    array[i] = middle - STEP;
    slopes[i] = static_cast<float>((above - loss(a, weights)) / (2.0 * STEP));
    array[i] = middle;
  }
  return slopes;
}
}  // namespace

int main() {
  Arrays a;
  const example::Array dout = example::random_array(SIZES.q_count(), 4);
  example::Array out(a.q.size()), lse(static_cast<size_t>(SIZES.lse_count()));
  example::Array dq(a.q.size()), dk(a.k.size()), dv(a.v.size());

  fa::Call forward("training_with_gradients", fa::Pass::forward);
  forward[fa::Role::q] = SIZES.q(a.q);
  forward[fa::Role::k] = SIZES.k(a.k);
  forward[fa::Role::v] = SIZES.k(a.v);
  forward[fa::Role::out] = SIZES.q(out);
  forward[fa::Role::lse] = SIZES.lse(lse);
  forward.options.causal = true;
  fa::run(forward);

  fa::Call backward = forward;  // the same arrays and options, and three more to write
  backward.pass = fa::Pass::backward;
  backward[fa::Role::dout] = SIZES.q(dout);
  backward[fa::Role::dq] = SIZES.q(dq);
  backward[fa::Role::dk] = SIZES.k(dk);
  backward[fa::Role::dv] = SIZES.k(dv);
  fa::run(backward);

  const double tolerance = 2e-3;  // of the differences, not of the gradients
  example::expect_close("dq", dq, differences(a, a.q, dout, dq), tolerance);
  example::expect_close("dk", dk, differences(a, a.k, dout, dk), tolerance);
  example::expect_close("dv", dv, differences(a, a.v, dout, dv), tolerance);

  // one step against the gradient makes the loss smaller
  const double before = loss(a, dout);
  for (size_t i = 0; i < a.v.size(); i++) a.v[i] -= 0.01f * dv[i];
  const double after = loss(a, dout);
  std::printf("loss %.4f -> %.4f\n", before, after);
  return after < before ? 0 : 1;
}
