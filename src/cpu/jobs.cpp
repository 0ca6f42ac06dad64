#include "cpu/jobs.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels/plain.h"
#include "cpu/kernels/small.h"

namespace fa::cpu {
namespace {
using Numbers = ParamsT<double>;
// What the kernels take on a slow core: only whether threads are worth waking and which sequence is the longest hang on it.
Price plain_price(const Numbers& p) { return Price{20 + 1.5 * (p.dim + p.value_dim), 1000}; }
Price forward_price(const Numbers& p) { return Price{0.3 + 0.1 * (p.dim + p.value_dim), 1.0 * (p.dim + p.value_dim)}; }
Price backward_price(const Numbers& p) { return Price{0.6 + 0.25 * (p.dim + p.value_dim), 2.0 * (p.dim + p.value_dim)}; }
Price element_price(const Numbers& p) { return Price{0, 0.5 * (p.dim + p.value_dim)}; }
Price parts_price(const Numbers& p) { return Price{0, (p.splits + 1) * (20 + 0.5 * p.value_dim)}; }
Price number_price(const Numbers&) { return Price{0, 20}; }

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
    {"merge", Cut::head_rows, parts_price, small::merge, nullptr},
    {"sum_parts", Cut::rows, parts_price, small::sum_parts, nullptr},
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
