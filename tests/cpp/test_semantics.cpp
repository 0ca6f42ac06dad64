// Each function of src/semantics against independent formulas in double, written from the definitions in docs/how_it_works.md.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "semantics/dropout.h"
#include "semantics/layout.h"
#include "semantics/mask.h"
#include "semantics/rotary.h"
#include "semantics/score.h"
#include "semantics/softmax.h"

namespace {
constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double LN2 = 0.693147180559945309417, LOG2E = 1.44269504088896340736;

// ---- masks -----------------------------------------------------------------------------------------------------------

int floor_divide(int a, int b) { return static_cast<int>(std::floor(static_cast<double>(a) / b)); }

// the definition: position of the row on the diagonal, then window and chunk
bool sees(const fa::Mask& m, int row, int key) {
  const int diagonal = row + m.shift;
  if (key < diagonal - m.left || key > diagonal + m.right) return false;
  return m.chunk == 0 || floor_divide(key, m.chunk) == floor_divide(diagonal, m.chunk);
}

std::vector<fa::Mask> masks() {
  std::vector<fa::Mask> all;
  const int open = fa::no_limit();
  for (const auto& [rows, keys] : {std::pair{0, 5}, {5, 0}, {1, 1}, {7, 7}, {3, 11}, {11, 3}, {9, 14}})
    for (const int left : {open, 0, 1, 4})
      for (const int right : {open, 0, 2, 30})
        for (const int chunk : {0, 1, 2, 5, 100})
          for (const int shift : {keys - rows, 0, 3, -4, -40, 40, -7}) all.push_back(fa::Mask{rows, keys, left, right, shift, chunk});
  return all;
}

std::string text(const fa::Mask& m) {
  std::string s;
  for (const int number : {m.rows, m.keys, m.left, m.right, m.shift, m.chunk}) s += std::to_string(number) + " ";
  return "mask (rows keys left right shift chunk) " + s;
}

bool within(int x, fa::Interval<int> i) { return i.first <= x && x < i.end; }

TEST(Mask, VisibleKeysAndRowsAreTheDefinition) {
  for (const fa::Mask& m : masks()) {
    SCOPED_TRACE(text(m));
    for (int row = 0; row < m.rows; row++)
      for (int key = 0; key < m.keys + 3; key++) {  // of a tile beyond the last key, too
        const bool expected = key < m.keys && sees(m, row, key);
        ASSERT_EQ(within(key, fa::visible_keys(m, row)), expected) << "row " << row << " key " << key;
        ASSERT_EQ(within(row, fa::visible_rows(m, key)), expected) << "row " << row << " key " << key;
      }
  }
}

TEST(Mask, IntervalsStayInsideAndNeverMoveLeft) {
  for (const fa::Mask& m : masks()) {
    SCOPED_TRACE(text(m));
    for (int row = 0; row < m.rows; row++) {
      const fa::Interval<int> now = fa::visible_keys(m, row), next = fa::visible_keys(m, row + 1);
      ASSERT_GE(now.first, 0);
      ASSERT_LE(now.end, m.keys);
      ASSERT_LE(now.first, next.first);
      ASSERT_LE(now.end, next.end);
    }
    for (int key = 0; key + 1 < m.keys; key++) {
      const fa::Interval<int> now = fa::visible_rows(m, key), next = fa::visible_rows(m, key + 1);
      ASSERT_GE(now.first, 0);
      ASSERT_LE(now.end, m.rows);
      ASSERT_LE(now.first, next.first);
      ASSERT_LE(now.end, next.end);
    }
  }
}

TEST(Mask, AnyAndAllVisibleOfABlockOfRows) {
  for (const fa::Mask& m : masks()) {
    SCOPED_TRACE(text(m));
    for (int row0 = 0; row0 < m.rows; row0++)
      for (int row1 = row0; row1 < m.rows; row1++) {
        const fa::Interval<int> any = fa::any_visible(m, row0, row1), all = fa::all_visible(m, row0, row1);
        for (int key = 0; key < m.keys; key++) {
          bool one = false, every = true;
          for (int row = row0; row <= row1; row++) {
            one = one || sees(m, row, key);
            every = every && sees(m, row, key);
          }
          // tiles outside `any` may be skipped, tiles inside `all` need no mask
          if (one) {
            ASSERT_TRUE(within(key, any)) << "rows " << row0 << ".." << row1 << " key " << key;
          }
          ASSERT_EQ(within(key, all), every) << "rows " << row0 << ".." << row1 << " key " << key;
        }
      }
  }
}

TEST(Mask, ChunkStartRoundsDownAlsoBelowZero) {
  for (const int chunk : {1, 2, 3, 7, 100})
    for (int x = -250; x <= 250; x++) ASSERT_EQ(fa::chunk_start(x, chunk), floor_divide(x, chunk) * chunk) << x << " by " << chunk;
  const int far = 1 << 28;  // the largest positions and chunks that the core lets through
  EXPECT_EQ(fa::chunk_start(-far, far), -far);
  EXPECT_EQ(fa::chunk_start(-far - 1, far), -2 * far);
  EXPECT_EQ(fa::chunk_start(2 * far - 1, far), far);
}

TEST(Mask, SequencesAreAlignedAtTheBottomRight) {
  const fa::Mask call{100, 200, 5, 0, 17, 3};
  const fa::Mask aligned = fa::sequence_mask(call, 1, 10, 25), own = fa::sequence_mask(call, 0, 10, 25);
  EXPECT_EQ(text(aligned), text(fa::Mask{10, 25, 5, 0, 15, 3}));
  EXPECT_EQ(text(own), text(fa::Mask{10, 25, 5, 0, 17, 3}));
  // causal with more rows than keys: the first rows see nothing, the last sees everything
  const fa::Mask causal = fa::sequence_mask(fa::Mask{0, 0, fa::no_limit(), 0, 0, 0}, 1, 5, 3);
  EXPECT_EQ(fa::visible_keys(causal, 1).end, 0);
  EXPECT_EQ(fa::visible_keys(causal, 2).end, 1);
  EXPECT_EQ(fa::visible_keys(causal, 4).end, 3);
}

TEST(Mask, OpenLimitsHideNothingAtTheLongestLengths) {
  const int longest = 1 << 28;
  for (const int shift : {0, longest, -longest}) {
    const fa::Mask m{longest, longest, fa::no_limit(), fa::no_limit(), shift, 0};
    for (const int at : {0, 1, longest - 1}) {
      EXPECT_EQ(fa::visible_keys(m, at).first, 0) << shift;
      EXPECT_EQ(fa::visible_keys(m, at).end, longest) << shift;
      EXPECT_EQ(fa::visible_rows(m, at).first, 0) << shift;
      EXPECT_EQ(fa::visible_rows(m, at).end, longest) << shift;
    }
  }
}

// ---- score -----------------------------------------------------------------------------------------------------------

template <class V>
double worst_tanh_error(double* relative_near_zero) {
  double worst = 0;
  *relative_near_zero = 0;
  for (int i = -300000; i <= 300000; i++) {
    const V x = static_cast<V>(i * 1e-4);
    const double exact = std::tanh(static_cast<double>(x)), error = std::abs(static_cast<double>(fa::bounded_tanh(x)) - exact);
    worst = std::max(worst, error);
    if (x != 0 && std::abs(x) < V(0.5)) *relative_near_zero = std::max(*relative_near_zero, error / std::abs(exact));
  }
  return worst;
}

TEST(Score, TanhIsAccurateAndBounded) {
  double relative = 0;
  EXPECT_LT(worst_tanh_error<float>(&relative), 4 * 0x1p-24);
  EXPECT_LT(relative, 12 * 0x1p-24) << "no cancellation near 0";
  EXPECT_LE(worst_tanh_error<double>(&relative), 4 * 0x1p-53);
  EXPECT_LT(relative, 12 * 0x1p-53) << "no cancellation near 0";
  for (const float x : {1e-30f, 1e-10f, 1e-5f}) {
    EXPECT_EQ(fa::bounded_tanh(x), x);
    EXPECT_EQ(fa::bounded_tanh(-x), -x);
  }
  for (const float x : {20.0f, 88.0f, 1e10f, 3e38f, HUGE_VALF}) {
    EXPECT_EQ(fa::bounded_tanh(x), 1.0f);
    EXPECT_EQ(fa::bounded_tanh(-x), -1.0f);
    EXPECT_EQ(fa::bounded_tanh(static_cast<double>(x)), 1.0);
  }
}

// score in natural units by the order of operations of the API: scale, softcap, ALiBi, bias
template <unsigned F>
double reference_score(double dot, double scale, double cap, double slope, double distance, double bias) {
  double s = scale * dot;
  if (F & fa::SOFTCAP) s = cap * std::tanh(s / cap);
  if (F & fa::ALIBI) s -= slope * distance;
  if (F & fa::BIAS) s += bias;
  return s;
}

template <unsigned F>
void check_score() {
  for (const double scale : {0.125, -0.7, 2.0})
    for (const double cap : {0.5, 15.0})
      for (const double dot : {-40.0, -3.0, -0.01, 0.0, 0.2, 7.0, 100.0}) {
        const fa::ScoreT<double> s{scale, cap};
        const double slope = 0.25, distance = 13, bias = -1.75;
        const auto natural = [&](double x) {  // in log2 units, through the unit
          return fa::score<F>(x, s, slope, distance, bias) * fa::score_unit<F>(s) / LOG2E;
        };
        const double expected = reference_score<F>(dot, scale, cap, slope, distance, bias);
        ASSERT_NEAR(natural(dot), expected, 1e-13 * (1 + std::abs(expected))) << "F " << F << " dot " << dot;
        const fa::ScoreT<float> f{static_cast<float>(scale), static_cast<float>(cap)};
        const float narrow = fa::score<F>(static_cast<float>(dot), f, 0.25f, 13.0f, -1.75f) * fa::score_unit<F>(f);
        ASSERT_NEAR(narrow / LOG2E, expected, 1e-6 * (1 + std::abs(expected))) << "F " << F << " dot " << dot;
        // the slope is d(score) / d(scale * dot)
        const double step = 1e-5;
        const double central = (reference_score<F>(dot + step, scale, cap, slope, distance, bias) -
                                reference_score<F>(dot - step, scale, cap, slope, distance, bias)) /
                               (2 * step * scale);
        ASSERT_NEAR(fa::score_slope<F>(dot, s), central, 1e-7) << "F " << F << " dot " << dot;
      }
}

TEST(Score, EveryFeatureSetIsTheFormula) {
  check_score<0u>();
  check_score<fa::NATURAL>();
  check_score<fa::DROPOUT | fa::SINK>();
  check_score<fa::SOFTCAP>();
  check_score<fa::ALIBI>();
  check_score<fa::BIAS>();
  check_score<fa::SOFTCAP | fa::ALIBI>();
  check_score<fa::SOFTCAP | fa::BIAS>();
  check_score<fa::ALIBI | fa::BIAS>();
  check_score<fa::SOFTCAP | fa::ALIBI | fa::BIAS>();
  check_score<fa::ALL_FEATURES>();
}

TEST(Score, WithoutFeaturesTheScoreIsTheProduct) {
  const fa::ScoreT<float> s{0.3f, 0.0f};
  EXPECT_EQ(fa::score<0u>(2.5f, s, 9.0f, 9.0f, 9.0f), 2.5f);
  EXPECT_FLOAT_EQ(fa::score_unit<0u>(s), static_cast<float>(0.3 * LOG2E));
  EXPECT_FLOAT_EQ(fa::score_unit<fa::NATURAL>(s), static_cast<float>(LOG2E));
  EXPECT_EQ(fa::score_unit<fa::DROPOUT>(s), fa::score_unit<0u>(s)) << "dropout does not change the score";
  EXPECT_EQ(fa::CHANGES_SCORE, fa::SOFTCAP | fa::ALIBI | fa::BIAS | fa::NATURAL);
  EXPECT_EQ(fa::ALL_FEATURES, fa::CHANGES_SCORE | fa::DROPOUT | fa::SINK);
}

TEST(Score, BiasHidesBelowItsLimit) {
  const float hidden = fa::hidden();
  for (const float bias : {-INFINITY, -3e38f, -1.1e20f}) EXPECT_EQ(fa::add_bias(5.0f, bias), hidden) << bias;
  for (const float bias : {-9e19f, -1000.0f, 0.0f, 3.0f}) EXPECT_EQ(fa::add_bias(5.0f, bias), 5.0f + bias) << bias;
  EXPECT_EQ(fa::add_bias(5.0, -INF), static_cast<double>(hidden));
}

TEST(Score, SoftcapTakesEverySize) {
  for (const float cap : {1.2e-38f, 1e-3f, 1.0f, 1e30f})
    for (const float s : {-3e38f, -1.0f, 0.0f, 1e-3f, 3e38f}) {
      const float capped = fa::softcap(s, cap), slope = fa::softcap_slope(s, cap);
      EXPECT_LE(std::abs(capped), cap) << s << " " << cap;
      EXPECT_GE(slope, 0.0f);
      EXPECT_LE(slope, 1.0f);
    }
}

// ---- softmax ---------------------------------------------------------------------------------------------------------

fa::Softmax<double> empty() { return fa::Softmax<double>{fa::no_maximum(), 0}; }

// one row, tile by tile, as kernels do it
template <class V>
fa::Softmax<V> online(const std::vector<double>& scores, size_t tile, const fa::ScoreT<V>& s) {
  fa::Softmax<V> state{V(fa::no_maximum()), 0};
  const V unit = fa::score_unit<0u>(s);
  for (size_t first = 0; first < scores.size(); first += tile) {
    V most = V(fa::hidden());
    for (size_t j = first; j < std::min(first + tile, scores.size()); j++) most = fa::max(most, static_cast<V>(scores[j]) * unit);
    state = fa::advance(state, most);
    for (size_t j = first; j < std::min(first + tile, scores.size()); j++)
      state.sum += fa::probability(static_cast<V>(scores[j]), unit, state.max);
  }
  return state;
}
double exact_lse(const std::vector<double>& scores, double scale, double sink = -INF) {
  double most = sink, sum = 0;
  for (const double x : scores) most = std::max(most, x * scale);
  for (const double x : scores) sum += std::exp(x * scale - most);
  if (sink > -INF) sum += std::exp(sink - most);
  return most + std::log(sum);
}

TEST(Softmax, OnlineLogSumExpIsTheSum) {
  std::vector<double> scores;
  for (int j = 0; j < 97; j++) scores.push_back(40 * std::sin(1.7 * j) + 0.3 * j);  // the maximum moves often
  for (const size_t tile : {1u, 7u, 96u, 200u}) {
    const double lse = exact_lse(scores, 0.3);
    EXPECT_NEAR(fa::log_sum_exp(online<double>(scores, tile, {0.3, 0})), lse, 1e-12);
    EXPECT_NEAR(fa::log_sum_exp(online<float>(scores, tile, {0.3f, 0})), lse, 2e-6 * std::abs(lse));
  }
}

TEST(Softmax, RescaleAndAdvance) {
  EXPECT_DOUBLE_EQ(fa::rescale(3.0, 5.0), 0.25);
  EXPECT_EQ(fa::rescale(fa::no_maximum(), 0.0f), 0.0f);
  EXPECT_EQ(fa::rescale(fa::no_maximum(), fa::no_maximum()), 1.0f);
  const fa::Softmax<double> lower = fa::advance(fa::Softmax<double>{5, 3}, 2.0), higher = fa::advance(fa::Softmax<double>{5, 3}, 7.0);
  EXPECT_EQ(lower.max, 5);
  EXPECT_EQ(lower.sum, 3);
  EXPECT_EQ(higher.max, 7);
  EXPECT_DOUBLE_EQ(higher.sum, 0.75);
}

TEST(Softmax, ARowThatSeesNothing) {
  fa::Softmax<double> state = fa::advance(empty(), static_cast<double>(fa::hidden()));
  state.sum += fa::probability(static_cast<double>(fa::hidden()), LOG2E, state.max);
  EXPECT_EQ(state.sum, 0);
  EXPECT_EQ(fa::inverse_sum(state), 0);
  EXPECT_EQ(fa::log_sum_exp(state), -INF);
  EXPECT_EQ(fa::log_sum_exp(fa::Softmax<float>{fa::no_maximum(), 0.0f}), -std::numeric_limits<float>::infinity());
  // backward: whatever the score, P = 0
  for (const double score : {-1e30, 0.0, 1e20, static_cast<double>(fa::hidden())})
    EXPECT_EQ(fa::probability(score, LOG2E, fa::lse_reference(-INF)), 0) << score;
  EXPECT_EQ(fa::probability(1e20f, 1.44f, fa::lse_reference(fa::minus_infinity())), 0.0f);
}

TEST(Softmax, HiddenKeysWeighNothingBesideAnyRealScore) {
  // also behind the smallest scale that is folded behind the maximum
  for (const float scale : {1e-6f, 0.1f, 10.0f}) {
    const fa::ScoreT<float> s{scale, 0};
    const float unit = fa::score_unit<0u>(s);
    for (const float lowest : {-1000.0f, 0.0f, 1000.0f}) EXPECT_EQ(fa::probability(fa::hidden(), unit, lowest * unit), 0.0f) << scale;
    EXPECT_EQ(fa::probability(fa::hidden(), unit, fa::no_maximum()), 0.0f) << "nor in a row that has seen nothing yet, scale " << scale;
  }
}

TEST(Softmax, SinkIsOneMoreKeyWithoutAValue) {
  const std::vector<double> scores{1.5, -2, 0.25};
  for (const double sink : {-50.0, -1.0, 0.0, 3.0, 80.0}) {
    const fa::Softmax<double> state = fa::add_sink(online<double>(scores, 2, {0.7, 0}), sink);
    EXPECT_NEAR(fa::log_sum_exp(state), exact_lse(scores, 0.7, sink), 1e-12) << sink;
    const fa::Softmax<double> alone = fa::add_sink(empty(), sink);
    EXPECT_NEAR(fa::log_sum_exp(alone), sink, 1e-12) << "a row without keys has lse = sink";
    EXPECT_NEAR(alone.sum, 1, 1e-12);
    const float narrow = fa::log_sum_exp(fa::add_sink(fa::Softmax<float>{fa::no_maximum(), 0}, static_cast<float>(sink)));
    EXPECT_NEAR(narrow, sink, 1e-6 * (1 + std::abs(sink)));
  }
  const fa::Softmax<double> none = fa::add_sink(online<double>(scores, 2, {0.7, 0}), -INF);
  EXPECT_NEAR(fa::log_sum_exp(none), exact_lse(scores, 0.7), 1e-12) << "a sink of -inf is no sink";
}

TEST(Softmax, LseReferenceIsTheLseInLog2Units) {
  for (const double lse : {-1000.0, -1.0, 0.0, 0.5, 1e6}) EXPECT_DOUBLE_EQ(fa::lse_reference(lse), lse * LOG2E);
  EXPECT_GE(fa::lse_reference(-INF), 1e30);
  for (const float lse : {-300.25f, -1.1f, 0.7f, 54.321f, 299.9f, 1e4f}) {  // together as exact as no float is
    const double both = static_cast<double>(fa::lse_reference(lse)) + static_cast<double>(fa::lse_remainder(lse));
    EXPECT_NEAR(both, static_cast<double>(lse) * LOG2E, 1e-12 * std::abs(lse)) << lse;
  }
  EXPECT_EQ(fa::lse_remainder(fa::minus_infinity()), 0.0f);
}

TEST(Softmax, SavedProbabilityLosesNoBitsOfTheLse) {
  for (const float lse : {-300.25f, 0.7f, 54.321f, 299.9f, 1e4f})
    for (const float below : {0.0f, 0.25f, 3.0f}) {
      const float score = lse - below, unit = static_cast<float>(LOG2E), reference = fa::lse_reference(lse), rest = fa::lse_remainder(lse);
      const double exponent = static_cast<double>(score) * static_cast<double>(unit) - static_cast<double>(reference);
      EXPECT_NEAR(fa::saved_probability(score, unit, reference, rest), std::exp2(exponent - static_cast<double>(rest)), 3e-7) << lse;
    }
}

// loss = sum_j c_j P_j m_j r: its derivative by a score, against score_gradient
TEST(Softmax, ScoreGradientByCentralDifferences) {
  const std::vector<double> scores{0.3, -1.2, 2.0, 0.9}, product{0.5, -2.0, 1.25, 3.0}, kept{0, 1.25, 1.25, 0};
  const double dlse = 0.35, sink = 0.4;
  const auto loss = [&](const std::vector<double>& s, double at_sink) {
    const double lse = exact_lse(s, 1, at_sink);
    double sum = dlse * lse;
    for (size_t j = 0; j < s.size(); j++) sum += product[j] * std::exp(s[j] - lse) * kept[j];
    return sum;
  };
  const double lse = exact_lse(scores, 1, sink), reference = fa::lse_reference(lse), step = 1e-5;
  double delta = -dlse;  // rowsum(dO * O) - dlse
  for (size_t j = 0; j < scores.size(); j++) delta += product[j] * std::exp(scores[j] - lse) * kept[j];
  for (size_t j = 0; j < scores.size(); j++) {
    std::vector<double> up = scores, down = scores;
    up[j] += step, down[j] -= step;
    const double p = fa::probability(scores[j], LOG2E, reference);
    EXPECT_NEAR(p, std::exp(scores[j] - lse), 1e-14);
    EXPECT_NEAR(fa::score_gradient(p, kept[j], product[j], delta), (loss(up, sink) - loss(down, sink)) / (2 * step), 1e-9) << j;
  }
  EXPECT_NEAR(fa::sink_gradient(sink, lse, delta), (loss(scores, sink + step) - loss(scores, sink - step)) / (2 * step), 1e-9);
  EXPECT_EQ(fa::sink_gradient(sink, -INF, delta), 0) << "a row without sink and keys gives nothing";
}

TEST(Softmax, ConstantsAreTheRightOnes) {
  EXPECT_EQ(fa::log2e(), static_cast<float>(LOG2E));
  EXPECT_EQ(fa::ln2(), static_cast<float>(LN2));
  EXPECT_EQ(fa::minus_infinity(), -std::numeric_limits<float>::infinity());
}

// ---- dropout ---------------------------------------------------------------------------------------------------------

// Philox 4x32 with 7 rounds (Salmon et al. 2011), by 64-bit products
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, uint32_t k0, uint32_t k1, int rounds) {
  for (int round = 0; round < rounds; round++) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b), static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1,
         static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  return c;
}

TEST(Dropout, TheOtherPhiloxIsPhilox) {  // known answers of Random123 for ten rounds
  EXPECT_EQ(philox({0, 0, 0, 0}, 0, 0, 10), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffff, 0xffffffff, 10),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Dropout, SevenRoundsOfPhilox) {
  for (uint32_t n = 0; n < 200; n++) {
    const std::array<uint32_t, 4> counter{n * 2654435761u, n + 7, ~n, n * n};
    const uint32_t k0 = n * 40503u, k1 = 0xdeadbeef - n;
    const auto expected = philox(counter, k0, k1, 7);
    const fa::Words<unsigned> found = fa::philox7(fa::Words<unsigned>{counter[0], counter[1], counter[2], counter[3]}, k0, k1);
    ASSERT_EQ((std::array<uint32_t, 4>{found.x, found.y, found.z, found.w}), expected) << n;
  }
}

// the 16 bits of one element, by the API's words
unsigned expected_bits(const fa::Seed& s, unsigned head, unsigned i, unsigned j) {
  const auto words = philox({(i / 16) * 8 + i % 8, (j / 32) * 8 + j % 8, head, s.offset}, s.low, s.high, 7);
  const unsigned group = ((i / 8) % 2) * 4 + (j / 8) % 4;
  return group % 2 == 0 ? words[group / 2] & 0xffff : words[group / 2] >> 16;
}

TEST(Dropout, BitsOfEveryElement) {
  const fa::Seed seed{0x01234567, 0x89abcdef, 5};
  for (const unsigned head : {0u, 3u, 77777u})
    for (unsigned i = 0; i < 48; i++)
      for (unsigned j = 0; j < 80; j++) {
        const unsigned bits = fa::dropout_bits(fa::dropout_words(seed, head, i, j), i, j);
        ASSERT_EQ(bits, expected_bits(seed, head, i, j)) << head << " " << i << " " << j;
        for (const unsigned threshold : {0u, 1u, 30000u, 65535u, 65536u})
          ASSERT_EQ(fa::keeps(fa::Dropout{threshold}, seed, head, i, j), bits < threshold);
      }
  const unsigned far = (1u << 28) + 13;
  EXPECT_EQ(fa::dropout_bits(fa::dropout_words(seed, 2u, far, far), far, far), expected_bits(seed, 2, far, far));
}

TEST(Dropout, OneCallDecidesEightElementsByAllItsBits) {
  const fa::Seed seed{9, 8, 7};
  const unsigned rows[] = {21, 29}, keys[] = {35, 43, 51, 59};  // 16 a + b + {0, 8}, 32 c + d + {0, 8, 16, 24}
  const fa::Words<unsigned> words = fa::dropout_words(seed, 4u, rows[0], keys[0]);
  std::multiset<unsigned> halves, found;
  for (const unsigned word : {words.x, words.y, words.z, words.w}) halves.insert(word & 0xffff), halves.insert(word >> 16);
  for (const unsigned i : rows)
    for (const unsigned j : keys) {
      const fa::Words<unsigned> same = fa::dropout_words(seed, 4u, i, j);
      EXPECT_TRUE(same.x == words.x && same.y == words.y && same.z == words.z && same.w == words.w) << i << " " << j;
      found.insert(fa::dropout_bits(words, i, j));
    }
  EXPECT_EQ(found, halves);
}

TEST(Dropout, EverythingThatShouldMattersAndTheRateIsRight) {
  const fa::Seed seed{1, 2, 3};
  const auto words = [](fa::Seed s, unsigned head, unsigned i, unsigned j) {
    const fa::Words<unsigned> w = fa::dropout_words(s, head, i, j);
    return std::array<unsigned, 4>{w.x, w.y, w.z, w.w};
  };
  const auto base = words(seed, 4, 16, 32);
  EXPECT_NE(words(fa::Seed{9, 2, 3}, 4, 16, 32), base);
  EXPECT_NE(words(fa::Seed{1, 9, 3}, 4, 16, 32), base);
  EXPECT_NE(words(fa::Seed{1, 2, 9}, 4, 16, 32), base);
  EXPECT_NE(words(seed, 5, 16, 32), base);
  EXPECT_NE(words(seed, 4, 17, 32), base);
  EXPECT_NE(words(seed, 4, 16, 33), base);
  int kept = 0;
  constexpr int N = 512;
  for (unsigned i = 0; i < N; i++)
    for (unsigned j = 0; j < N; j++) kept += fa::keeps(fa::Dropout{58982}, seed, 0u, i, j);
  const double rate = 58982.0 / 65536, deviation = std::sqrt(rate * (1 - rate) / (N * N));
  EXPECT_NEAR(kept / static_cast<double>(N * N), rate, 4 * deviation);
}

// ---- rotary, layout --------------------------------------------------------------------------------------------------

TEST(Rotary, PairsTurnByTheAngle) {
  for (const double angle : {0.0, 0.3, 1.57, 3.0, -2.0}) {
    const fa::Pair<double> turned = fa::rotate(2.0, -1.5, std::cos(angle), std::sin(angle));
    const double radius = std::hypot(2.0, -1.5), from = std::atan2(-1.5, 2.0);
    EXPECT_NEAR(turned.x, radius * std::cos(from + angle), 1e-14);
    EXPECT_NEAR(turned.y, radius * std::sin(from + angle), 1e-14);
  }
}

TEST(Rotary, PairsCoverTheRotatedPartOnce) {
  for (const int dim : {2, 8, 30})
    for (const int interleaved : {0, 1}) {
      std::multiset<int> elements;
      for (int t = 0; t < dim / 2; t++) {
        const int first = fa::rotary_first(t, interleaved), second = fa::rotary_second(t, dim, interleaved);
        EXPECT_EQ(second - first, interleaved ? 1 : dim / 2);
        elements.insert(first), elements.insert(second);
      }
      int expected = 0;
      for (const int e : elements) EXPECT_EQ(e, expected++);
      EXPECT_EQ(expected, dim);
    }
}

TEST(Layout, Offsets) {
  EXPECT_EQ(fa::offset_of(fa::Strides{1000, -10, 3}, 2, 5, 7), 2000 - 50 + 21);
  EXPECT_EQ(fa::offset_of(fa::Strides{1ll << 40, 1ll << 20, 1}, 3, 1 << 28, 5), (3ll << 40) + (1ll << 48) + 5) << "in 64 bits";
  for (const int size : {1, 3, 16, 256})
    for (const int key : {0, 1, 15, 16, 255, 256, 1000}) EXPECT_EQ(fa::page_of(key, size) * size + fa::slot_of(key, size), key);
  EXPECT_EQ(fa::slot_of(16, 16), 0);
  EXPECT_EQ(fa::kv_head_of(5, 2), 2);
  EXPECT_EQ(fa::kv_head_of(5, 1), 5);
  EXPECT_EQ(fa::cached_keys(10, 3, 4), 9);
  EXPECT_EQ(fa::cached_keys(2, 0, 4), 0) << "never negative";
}
}  // namespace
