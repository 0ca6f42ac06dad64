// describe(), check_values(), outputs(), narrow(): every refusal, every message, and the numbers of calls that are right.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <regex>
#include <string>

#include "broken_passes.h"
#include "core/names.h"
#include "core/problem.h"

namespace fa::calls {
namespace {
using Numbers = std::vector<int64_t>;
namespace fs = std::filesystem;

std::optional<Error> refusal(const Call& call, bool values) {
  try {
    const Problem p = describe(call);
    if (values) check_values(call, p);
  } catch (const Error& e) {
    return e;
  }
  return {};
}

std::vector<Broken> all_broken() {
  std::vector<Broken> all;
  for (const auto& table : {broken_arrays(), broken_options(), broken_passes(), broken_values()})
    all.insert(all.end(), table.begin(), table.end());
  return all;
}

void expect_refused(const Broken& row, bool by_values) {
  Call call = row.base();
  SCOPED_TRACE(std::string(row.argument) + ": " + row.words);
  const auto before = refusal(call, true);
  ASSERT_FALSE(before) << "the call is wrong before it is broken: " << before->what();
  row.change(call);
  if (by_values) {
    ASSERT_FALSE(refusal(call, false)) << "found without looking at values: " << refusal(call, false)->what();
  }
  const auto error = refusal(call, by_values);
  ASSERT_TRUE(error) << "nothing was refused";
  EXPECT_EQ(error->kind, row.kind) << error->what();
  const std::string what = error->what(), head = std::string("[") + call.function + "] " + row.argument + ": ";
  EXPECT_EQ(what.substr(0, head.size()), head);
  EXPECT_NE(what.find(row.words), std::string::npos) << what;
  EXPECT_TRUE(std::regex_match(what, std::regex(R"(\[\w+\] [\w, /.]+: expected .*found .*\.)"))) << what;
}

TEST(Validate, BrokenArraysAreRefused) {
  for (const Broken& row : broken_arrays()) expect_refused(row, false);
}
TEST(Validate, BrokenOptionsAreRefused) {
  for (const Broken& row : broken_options()) expect_refused(row, false);
}
TEST(Validate, BrokenPassesAreRefused) {
  for (const Broken& row : broken_passes()) expect_refused(row, false);
}
TEST(Validate, BrokenValuesAreRefused) {
  for (const Broken& row : broken_values()) expect_refused(row, true);
}

// String literals of each refusal in a source file, in order: what a message of it must contain. Of a choice ("? a : b") neither.
std::vector<std::vector<std::string>> refusals_in(const fs::path& file) {
  std::ifstream stream(file);
  std::string source{std::istreambuf_iterator<char>(stream), {}};
  source = std::regex_replace(source, std::regex(R"(\?\s*"[^"]*"\s*:\s*"[^"]*")"), "");
  const std::regex start(R"(\b(bad|bad_value|fail)\()"), literal(R"re("((?:\\.|[^"\\])*)")re");
  std::vector<std::vector<std::string>> found;
  for (std::sregex_iterator at(source.begin(), source.end(), start), end; at != end; ++at) {
    const size_t from = static_cast<size_t>(at->position()), to = source.find(";\n", from);
    const std::string statement = source.substr(from, to - from);
    if (statement.find('{') != std::string::npos) continue;  // a definition
    std::vector<std::string> parts;
    for (std::sregex_iterator part(statement.begin(), statement.end(), literal); part != end; ++part) parts.push_back((*part)[1]);
    if (!parts.empty()) found.push_back(parts);
  }
  return found;
}

bool contains_in_order(const std::string& message, const std::vector<std::string>& parts) {
  size_t at = 0;
  for (const std::string& part : parts) {
    at = message.find(part, at);
    if (at == std::string::npos) return false;
    at += part.size();
  }
  return true;
}

TEST(Validate, EveryMessageIsProvoked) {
  std::vector<std::string> messages;
  for (const Broken& row : all_broken()) {
    Call call = row.base();
    row.change(call);
    if (const auto error = refusal(call, true)) messages.emplace_back(error->what());
  }
  int refusals = 0;
  const fs::path core = fs::path(__FILE__).parent_path().parent_path().parent_path() / "src" / "core";
  for (const auto& entry : fs::directory_iterator(core)) {
    if (entry.path().filename().string().rfind("validate", 0) != 0) continue;
    for (const auto& parts : refusals_in(entry.path())) {
      refusals++;
      bool provoked = false;
      for (const std::string& message : messages) provoked = provoked || contains_in_order(message, parts);
      std::string words;
      for (const std::string& part : parts) words += part + " ... ";
      EXPECT_TRUE(provoked) << entry.path().filename() << ": no test provokes \"" << words << "\"";
    }
  }
  EXPECT_GT(refusals, 60) << "the sources were not read as they are written";
}

TEST(Validate, NamesAreThoseOfTheFunction) {
  const auto named = [](const char* function, Role role) { return argument_name(Call(function, Pass::forward), role); };
  EXPECT_EQ(named("flash_attn_func", Role::k), "k");
  EXPECT_EQ(named("flash_attn_with_kvcache", Role::k), "k_cache");
  EXPECT_EQ(named("flash_attn_with_kvcache", Role::v), "v_cache");
  EXPECT_EQ(named("flash_attn_with_kvcache", Role::new_v), "v");
  EXPECT_EQ(named("flash_attn_with_kvcache", Role::q), "q");
  EXPECT_EQ(named("flash_attn_qkvpacked_func", Role::q), "qkv");
  EXPECT_EQ(named("flash_attn_kvpacked_func", Role::q), "q");
  EXPECT_EQ(named("flash_attn_kvpacked_func", Role::v), "kv");
  EXPECT_EQ(named("flash_attn_varlen_kvpacked_func", Role::k), "kv");
  EXPECT_EQ(named("flash_attn_varlen_kvpacked_func", Role::cu_rows), "cu_seqlens_q");
  EXPECT_EQ(named("flash_attn_varlen_qkvpacked_func", Role::k), "qkv");
  EXPECT_EQ(named("flash_attn_varlen_qkvpacked_func", Role::cu_keys), "cu_seqlens");
  EXPECT_EQ(max_seqlen_name(Call("flash_attn_varlen_qkvpacked_func", Pass::forward), Role::k), "max_seqlen");
  EXPECT_EQ(max_seqlen_name(Call("flash_attn_varlen_func", Pass::forward), Role::k), "max_seqlen_k");
}

// ---- calls that are right --------------------------------------------------------------------------------------------

void expect_strides(Strides found, int64_t batch, int64_t row, int64_t head) {
  EXPECT_EQ(found.batch, batch);
  EXPECT_EQ(found.row, row);
  EXPECT_EQ(found.head, head);
}

TEST(Describe, NumbersOfADenseCall) {
  Call c = dense();
  resize(c, Role::v, {2, 7, 2, 6});
  c[Role::q].stride[0] = -1000, c[Role::q].stride[1] = 100, c[Role::q].stride[2] = 8;
  const Problem p = describe(c);
  const auto& x = p.params;
  EXPECT_EQ(p.dtype, DType::f32);
  EXPECT_EQ(p.out_dtype, DType::f32);
  EXPECT_EQ((Numbers{x.batch, x.heads, x.kv_heads, x.group, x.dim, x.value_dim}), (Numbers{2, 4, 2, 2, 8, 6}));
  EXPECT_EQ((Numbers{p.max_rows, p.max_keys, p.total_rows, p.total_keys}), (Numbers{5, 7, 10, 14}));
  EXPECT_DOUBLE_EQ(x.score.scale, 1 / std::sqrt(8.0));
  EXPECT_EQ(p.features, 0u);
  EXPECT_EQ(p.needs, unsigned(VALUE_DIM | LSE));
  EXPECT_EQ((Numbers{x.mask.rows, x.mask.keys, x.mask.shift, x.mask.chunk, x.aligned}), (Numbers{5, 7, 2, 0, 1}));
  EXPECT_EQ((Numbers{x.mask.left, x.mask.right}), (Numbers{no_limit(), no_limit()}));
  EXPECT_EQ((Numbers{x.lse_batch, x.lse_head, x.cache_length, x.capacity}), (Numbers{20, 5, -1, 7}));
  expect_strides(x.q, -1000, 100, 8);
  expect_strides(x.k, 112, 16, 8);
  expect_strides(x.v, 84, 12, 6);
  expect_strides(x.out, 120, 24, 6);
}

TEST(Describe, OptionsBecomeMaskFeaturesAndNeeds) {
  Call c = dense();
  c.options.causal = true;
  EXPECT_EQ(describe(c).params.mask.right, 0);
  EXPECT_EQ(describe(c).needs, unsigned(LSE)) << "causal alone is no window";
  c.options.left = 3, c.options.right = 9;
  EXPECT_EQ(describe(c).params.mask.right, 0) << "causal wins over the right limit";
  EXPECT_EQ(describe(c).params.mask.left, 3);
  EXPECT_EQ(describe(c).needs, unsigned(WINDOW | LSE));
  c = dense();
  c.options.left = INT64_MAX, c.options.right = INT64_MAX;
  EXPECT_EQ(describe(c).needs, unsigned(LSE)) << "a limit that limits nothing";
  c.options.right = 4;
  EXPECT_EQ(describe(c).needs, unsigned(WINDOW | LSE));
  c = dense();
  c.options.chunk = 3, c.options.deterministic = true, c.options.has_offsets = true, c.options.q_offset = 11, c.options.k_offset = -2;
  const Problem p = describe(c);
  EXPECT_EQ(p.needs, unsigned(CHUNK | DETERMINISTIC | OFFSETS | LSE));
  EXPECT_EQ((Numbers{p.params.mask.shift, p.params.aligned, p.params.q_offset, p.params.k_offset}), (Numbers{13, 0, 11, -2}));
  c = dense();
  c.options.softcap = 2, c.options.dropout = 0.1, c[Role::seed] = array(DType::i64, {2});
  c[Role::slopes] = array(DType::f32, {2, 4}), c[Role::sink] = array(DType::f16, {4}), c[Role::bias] = array(DType::u8, {4, 1, 7});
  c[Role::used_rows] = ints({1, 1});
  const Problem all = describe(c);
  EXPECT_EQ(all.features, unsigned(SOFTCAP | ALIBI | BIAS | DROPOUT | SINK));
  EXPECT_EQ(all.needs, unsigned(USED | LSE));
  EXPECT_EQ(all.params.dropout.threshold, 58982u) << "round(0.9 * 65536)";
  EXPECT_DOUBLE_EQ(all.params.keep_scale, 1 / 0.9);
  EXPECT_EQ((Numbers{all.params.slopes_batch, all.params.bias_bool}), (Numbers{4, 1}));
  const BiasStrides b = all.params.bias, d = all.params.dbias;
  EXPECT_EQ((Numbers{b.batch, b.head, b.row, b.key}), (Numbers{0, 7, 0, 1}));
  EXPECT_EQ((Numbers{d.batch, d.head, d.row, d.key}), (Numbers{0, 7, 0, 1}));
}

TEST(Describe, ExtremeButRightOptions) {
  for (const double drop : {1e-9, 0.5, 0.99999, 1 - 1e-15}) {
    Call c = dense();
    c.options.dropout = drop, c[Role::seed] = array(DType::u32, {4});
    EXPECT_EQ(describe(c).params.dropout.threshold, static_cast<unsigned>(std::lround((1 - drop) * 65536)));
  }
  // a scale that float32 kernels cannot fold behind the maximum is applied before it
  for (const double scale : {0.0, -0.5, 1e-7, 1e-40, -1e38}) {
    Call c = dense();
    c.options.scale = scale;
    EXPECT_EQ(describe(c).features, unsigned(NATURAL)) << scale;
    c.options.softcap = 1;
    EXPECT_EQ(describe(c).features, unsigned(SOFTCAP)) << "the softcap's score is in natural units anyway";
  }
  Call c = dense();
  c.options.scale = 1e38;
  EXPECT_EQ(describe(c).features, 0u);
  c.options.has_offsets = true, c.options.q_offset = 1 << 28;
  EXPECT_EQ(describe(c).params.mask.shift, 1 << 28);
  EXPECT_LE(visible_keys(describe(c).params.mask, 4).first, 0) << "an open window hides nothing, however far the rows are";
  c.options.q_offset = 0, c.options.k_offset = 1 << 28;
  EXPECT_EQ(visible_keys(describe(c).params.mask, 0).end, 7);
}

TEST(Describe, EmptyCallsAreRight) {
  for (const auto& [batch, rows, keys] : {std::tuple{0, 5, 7}, std::tuple{2, 0, 7}, std::tuple{2, 5, 0}, std::tuple{0, 0, 0}}) {
    Call c("flash_attn_func", Pass::forward);
    c[Role::q] = tensor(nullptr, DType::f32, {batch, rows, 4, 8});
    c[Role::k] = c[Role::v] = tensor(nullptr, DType::f32, {batch, keys, 2, 8});
    const Problem p = describe(c);
    EXPECT_EQ(p.params.mask.shift, keys - rows);
    EXPECT_EQ(p.total_rows, batch * rows);
  }
  Call c = varlen();
  c[Role::q] = tensor(nullptr, DType::f32, {0, 4, 8}), c[Role::k] = c[Role::v] = tensor(nullptr, DType::f32, {0, 2, 8});
  c[Role::cu_rows] = ints({0}), c[Role::cu_keys] = ints({0});
  EXPECT_FALSE(refusal(c, true));
  EXPECT_EQ(describe(c).params.batch, 0);
}

TEST(Describe, PackedPagedAndCachedCalls) {
  const Problem packed = describe(varlen());
  EXPECT_EQ(packed.needs, unsigned(VARLEN | LSE));
  EXPECT_EQ((Numbers{packed.max_rows, packed.max_keys, packed.total_rows, packed.total_keys}), (Numbers{3, 4, 5, 7}));
  EXPECT_EQ((Numbers{packed.params.lse_batch, packed.params.lse_head}), (Numbers{0, 5}));
  expect_strides(packed.params.q, 0, 32, 8);
  expect_strides(packed.params.out, 0, 32, 8);
  Call longer = varlen();
  longer.options.max_rows = 1000;
  EXPECT_EQ(describe(longer).max_rows, 5) << "no sequence is longer than all rows";
  const Problem pages = describe(paged_varlen());
  EXPECT_EQ(pages.needs, unsigned(VARLEN | PAGED | LSE));
  EXPECT_EQ((Numbers{pages.params.page_size, pages.params.capacity, pages.params.pages_batch}), (Numbers{4, 8, 2}));
  expect_strides(pages.params.k, 64, 16, 8);
  const Problem cached = describe(paged());
  EXPECT_EQ(cached.needs, unsigned(CACHED | PAGED | LSE));
  EXPECT_EQ(cached.max_keys, 8);
  const Problem grows = describe(growing());
  EXPECT_EQ((Numbers{grows.params.appended, grows.new_rows, grows.cos_positions}), (Numbers{2, 2, 16}));
  EXPECT_EQ((Numbers{grows.params.rotary_dim, grows.params.rotary_interleaved, grows.params.rotary_fixed}), (Numbers{8, 1, 1}));
  expect_strides(grows.params.new_k, 32, 16, 8);
  for (auto change : {+[](Options& o) { o.causal = true; }, +[](Options& o) { o.left = 0; }, +[](Options& o) { o.right = 3; }}) {
    Call moving = growing();
    change(moving.options);
    EXPECT_EQ(describe(moving).params.rotary_fixed, 0);
  }
  Call same = cache();
  drop(same, Role::lengths), same.options.cache_length = 7;
  EXPECT_EQ(describe(same).params.cache_length, 7);
  // interleaved caches, as one array of keys and values beside each other has them
  Call beside = growing();
  float* memory = static_cast<float*>(array(DType::f32, {2, 7, 2, 2, 8}).data);
  for (const auto& [role, offset] : {std::pair{Role::k, 0}, std::pair{Role::v, 16}}) {
    beside[role].data = memory + offset;
    beside[role].stride[0] = 7 * 32, beside[role].stride[1] = 32;
  }
  EXPECT_FALSE(refusal(beside, true));
  EXPECT_EQ(refusal(append(), true), std::nullopt);
  Call in_place = append();
  in_place[Role::rotated_q] = in_place[Role::q];
  EXPECT_EQ(refusal(in_place, true), std::nullopt) << "queries may turn in place";
  EXPECT_EQ(describe(append()).needs & CACHED, unsigned(CACHED));
}

std::string outputs_text(const Call& call) {
  std::string all;
  for (const Output& o : outputs(call)) {
    all += std::string(role_name(o.role)) + std::to_string(static_cast<int>(o.dtype));
    all += shape_text(o.shape.data(), static_cast<int>(o.shape.size())) + " ";
  }
  return all;
}

TEST(Outputs, ShapesAndDtypesOfEveryPass) {
  EXPECT_EQ(outputs_text(dense_of(DType::bf16)), "out2(2, 5, 4, 8) lse3(2, 4, 5) ");
  EXPECT_EQ(outputs_text(dense_of(DType::f64)), "out4(2, 5, 4, 8) lse4(2, 4, 5) ");
  Call c = dense_of(DType::f16);
  c.options.out_dtype = DType::f32, c.options.wants = bit(Role::probabilities);
  EXPECT_EQ(outputs_text(c), "out3(2, 5, 4, 8) lse3(2, 4, 5) probabilities1(2, 4, 5, 7) ");
  EXPECT_EQ(describe(c).needs, unsigned(OUT_FLOAT | LSE));
  c.options.wants = bit(Role::out);
  EXPECT_EQ(describe(c).needs, unsigned(OUT_FLOAT)) << "nobody reads the lse";
  EXPECT_EQ(describe(c).wants, bit(Role::out) | bit(Role::lse)) << "which most kernels write all the same";
  c.options.wants = 0;
  c = varlen();
  c[Role::probabilities] = array(DType::f32, {2, 4, 3, 4});
  EXPECT_EQ(outputs_text(c), "out3(5, 4, 8) lse3(4, 5) probabilities3(2, 4, 3, 4) ") << "an array to write to is a wish";
  EXPECT_EQ(outputs_text(backward()), "dq3(2, 5, 4, 8) dk3(2, 7, 2, 8) dv3(2, 7, 2, 8) ");
  c = backward();
  c[Role::bias] = array(DType::f16, {1, 4, 1, 7}), c[Role::sink] = array(DType::f32, {4}), c[Role::dsink] = array(DType::f32, {4});
  c[Role::delta] = array(DType::f32, {2, 4, 5}), c.options.wants = bit(Role::dbias);
  EXPECT_EQ(outputs_text(c), "dq3(2, 5, 4, 8) dk3(2, 7, 2, 8) dv3(2, 7, 2, 8) dbias1(1, 4, 1, 7) dsink3(4,) delta3(2, 4, 5) ");
  c[Role::bias] = array(DType::u8, {5, 7});
  EXPECT_EQ(outputs_text(c), "dq3(2, 5, 4, 8) dk3(2, 7, 2, 8) dv3(2, 7, 2, 8) dsink3(4,) delta3(2, 4, 5) ") << "a mask has no gradient";
  EXPECT_EQ(outputs_text(append()), "rotated_q3(2, 5, 4, 8) ");
  EXPECT_EQ(outputs_text(merge()), "out3(2, 5, 4, 8) lse3(2, 4, 5) ");
  c = merge();
  c[Role::part_out].dtype = DType::bf16, c.options.out_dtype = DType::f32;
  EXPECT_EQ(outputs_text(c), "out3(2, 5, 4, 8) lse3(2, 4, 5) ");
}

TEST(Outputs, StridesAreThoseOfTheCallersArrays) {
  Call c = backward();
  for (const auto& [role, rows, heads] : {std::tuple{Role::dq, 5, 4}, std::tuple{Role::dk, 7, 2}, std::tuple{Role::dv, 7, 2}}) {
    c[role] = array(DType::f32, {2, heads, rows, 8});  // heads first in memory
    c[role].shape[1] = rows, c[role].shape[2] = heads;
    c[role].stride[1] = 8, c[role].stride[2] = rows * 8;
  }
  const Problem p = describe(c);
  expect_strides(p.params.dq, 160, 8, 40);
  expect_strides(p.params.dk, 112, 8, 56);
  expect_strides(p.params.dv, 112, 8, 56);
  const Problem plain = describe(backward());
  expect_strides(plain.params.dq, 160, 32, 8);
  expect_strides(plain.params.dk, 112, 16, 8);
}

TEST(Narrow, CopiesEveryNumber) {
  // 8-byte integers, then Reals, then ints: every word gets a value of its own
  using Wide = ParamsT<double>;
  constexpr size_t longs = offsetof(Wide, score) / 8, reals = (offsetof(Wide, mask) - offsetof(Wide, score)) / 8;
  constexpr size_t ints = (offsetof(Wide, split_keys) + 4 - offsetof(Wide, mask)) / 4;
  static_assert(offsetof(Params, score) == longs * 8 && offsetof(Params, mask) == longs * 8 + reals * 4);
  static_assert(sizeof(Params) - offsetof(Params, split_keys) < 4 + 8, "split_keys is not the last number any more");
  int64_t wide_longs[longs];
  double wide_reals[reals];
  int32_t wide_ints[ints];
  for (size_t i = 0; i < longs; i++) wide_longs[i] = static_cast<int64_t>(i + 1) << 33;
  for (size_t i = 0; i < reals; i++) wide_reals[i] = static_cast<double>(i) + 0.25;
  for (size_t i = 0; i < ints; i++) wide_ints[i] = 1000 + static_cast<int32_t>(i);
  Wide wide{};
  char* const bytes = reinterpret_cast<char*>(&wide);
  std::memcpy(bytes, wide_longs, sizeof wide_longs);
  std::memcpy(bytes + offsetof(Wide, score), wide_reals, sizeof wide_reals);
  std::memcpy(bytes + offsetof(Wide, mask), wide_ints, sizeof wide_ints);
  const Params narrowed = narrow(wide);
  const char* const from = reinterpret_cast<const char*>(&narrowed);
  int64_t found_long;
  float found_real;
  int32_t found_int;
  for (size_t i = 0; i < longs; i++) {
    std::memcpy(&found_long, from + i * 8, 8);
    EXPECT_EQ(found_long, wide_longs[i]) << "64-bit number " << i;
  }
  for (size_t i = 0; i < reals; i++) {
    std::memcpy(&found_real, from + offsetof(Params, score) + i * 4, 4);
    EXPECT_EQ(found_real, static_cast<float>(wide_reals[i])) << "real number " << i;
  }
  for (size_t i = 0; i < ints; i++) {
    std::memcpy(&found_int, from + offsetof(Params, mask) + i * 4, 4);
    EXPECT_EQ(found_int, wide_ints[i]) << "int " << i;
  }
}
}  // namespace
}  // namespace fa::calls
