// One query head of one sequence, for kernels that take one row at a time: its elements, and its rows in every array.
#pragma once
#include "each.cuh"
#include "row.cuh"
#include "score.cuh"
namespace fa::cuda {
struct Head {
  const Numbers& p;
  const Arrays& a;
  const Sequence& s;
  int head, kv_head;
  Elements elements;

  FA_MEMBER Head(const Numbers& numbers, const Arrays& arrays, const Sequence& sequence, int query_head)
      : p(numbers),
        a(arrays),
        s(sequence),
        head(query_head),
        kv_head(kv_head_of(query_head, numbers.group)),
        elements(numbers, arrays, sequence, query_head) {}
  FA_MEMBER const Element* q(int i) const { return static_cast<const Element*>(a.q) + row_offset(p.q, s, i, head); }
  FA_MEMBER const Element* dout(int i) const { return static_cast<const Element*>(a.dout) + row_offset(p.dout, s, i, head); }
  FA_MEMBER const Element* k(int j) const { return static_cast<const Element*>(a.k) + key_offset(p, p.k, s, j, kv_head); }
  FA_MEMBER const Element* v(int j) const { return static_cast<const Element*>(a.v) + key_offset(p, p.v, s, j, kv_head); }
  // of a row whose lse is known
  FA_MEMBER Real probability(Real score, Real lse) const {
    if constexpr (sizeof(Real) == 8) return fa::probability(score, elements.unit(), lse_reference(lse));
    return saved_probability(score, elements.unit(), lse_reference(lse), lse_remainder(lse));
  }
  // what dropout multiplies a probability by
  FA_MEMBER Real kept(int i, int j) const { return !DROPS ? Real(1) : elements.keeps(i, j) ? elements.keep_scale : Real(0); }
};

// d(loss) / d(score) of one element in natural units, and what the forward pass weighed its value by.
struct Slope {
  Real score, weight;
};
FA_FN Slope element_gradient(const Head& head, Real score, Real product, int i, int j) {
  const Int64 at = lse_offset(head.p, head.s, i, head.head);
  const Real lse = static_cast<const Real*>(head.a.lse)[at], delta = static_cast<const Real*>(head.a.delta)[at];
  const Real weight = head.probability(score, lse), kept = head.kept(i, j);
  return Slope{score_gradient(weight, kept, product, delta), weight * kept};
}
}  // namespace fa::cuda
