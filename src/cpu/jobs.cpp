#include "cpu/jobs.h"

#include <cstring>
#include <stdexcept>

#include "cpu/kernels/plain.h"
#include "cpu/kernels/small.h"

namespace fa::cpu {
namespace {
// ns, for two products of a plain pair; for an element that is read and written once
double plain_ns(const Problem& p) { return 20 + 1.5 * (p.params.dim + p.params.value_dim); }
Price plain_price(const Problem& p) { return Price{plain_ns(p), 1000}; }
// a product of the fast kernels at about 20 GFLOP/s
Price forward_price(const Problem& p) {
  return Price{0.1 * (p.params.dim + p.params.value_dim) + 0.3, 1.0 * (p.params.dim + p.params.value_dim)};
}
Price backward_price(const Problem& p) {
  return Price{0.25 * (p.params.dim + p.params.value_dim) + 0.6, 2.0 * (p.params.dim + p.params.value_dim)};
}
Price element_price(const Problem& p) { return Price{0, 0.5 * (p.params.dim + p.params.value_dim)}; }
Price number_price(const Problem&) { return Price{0, 20}; }
Price merge_price(const Problem& p) { return Price{0, (p.splits + 1) * (20 + 0.5 * p.params.value_dim)}; }

constexpr Work WORKS[] = {
    {"forward", Cut::group_rows, forward_price, nullptr, &Isa::forward},
    {"backward", Cut::chunks, backward_price, nullptr, &Isa::backward},
    {"bias_gradient", Cut::bias_keys, backward_price, nullptr, &Isa::bias_gradient},
    {"decode", Cut::splits, forward_price, nullptr, &Isa::decode},
    {"forward_plain", Cut::head_rows, plain_price, plain::forward, nullptr},
    {"row_gradient_plain", Cut::head_rows, plain_price, plain::row_gradient, nullptr},
    {"key_gradient_plain", Cut::head_keys, plain_price, plain::key_gradient, nullptr},
    {"bias_gradient_plain", Cut::bias_rows, plain_price, plain::bias_gradient, nullptr},
    {"probabilities", Cut::full_rows, plain_price, plain::probabilities, nullptr},
    {"delta", Cut::rows, element_price, small::delta, nullptr},
    {"append", Cut::append, element_price, small::append, nullptr},
    {"merge", Cut::rows, merge_price, small::merge, nullptr},
    {"sum_parts", Cut::rows, element_price, small::sum_parts, nullptr},
    {"sink_gradient", Cut::heads, number_price, small::sink_gradient, nullptr},
    {"clear", Cut::absent, element_price, small::clear, nullptr},
};
}  // namespace

const Work& work_of(const char* kernel) {
  for (const Work& w : WORKS)
    if (std::strcmp(w.name, kernel) == 0) return w;
  throw std::logic_error(std::string("no CPU kernel is called ") + kernel);
}
}  // namespace fa::cpu
