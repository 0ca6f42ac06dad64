// The tasks of a launch: each row, key or head of each sequence exactly once, whatever the lengths.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "cpu/plan.h"
#include "cpu/sequences.h"

namespace {
using namespace fa;
using cpu::Cut;

// A packed call of (rows, keys) sequences, with `tail` rows and keys behind the last.
struct Packed {
  std::vector<int32_t> cu_rows{0}, cu_keys{0};
  Call call{"test", Pass::forward};
  Problem problem;
  std::vector<cpu::Sequence> sequences;

  explicit Packed(const std::vector<std::pair<int, int>>& lengths, Pass pass = Pass::forward, int tail = 0) : call("test", pass) {
    int longest_rows = 0, longest_keys = 0;
    for (auto [rows, keys] : lengths) {
      cu_rows.push_back(cu_rows.back() + rows);
      cu_keys.push_back(cu_keys.back() + keys);
      longest_rows = std::max(longest_rows, rows);
      longest_keys = std::max(longest_keys, keys);
    }
    const int64_t total_rows = cu_rows.back() + tail, total_keys = cu_keys.back() + tail, n = static_cast<int64_t>(lengths.size());
    call[Role::q] = tensor(nullptr, DType::f32, {total_rows, 4, 32});
    call[Role::k] = call[Role::v] = tensor(nullptr, DType::f32, {total_keys, 2, 32});
    call[Role::cu_rows] = tensor(cu_rows.data(), DType::i32, {n + 1});
    call[Role::cu_keys] = tensor(cu_keys.data(), DType::i32, {n + 1});
    if (pass == Pass::backward) {
      call[Role::out] = call[Role::dout] = call[Role::q];
      call[Role::lse] = tensor(nullptr, DType::f32, {4, total_rows});
    }
    call.options.causal = true;
    call.options.max_rows = longest_rows;
    call.options.max_keys = longest_keys;
    problem = describe(call);
    sequences = cpu::read_sequences(problem, Buffers{call.arrays, {}});
  }
  cpu::TaskList tasks(Cut cut, int step, ParamsT<double> params) const {
    return cpu::tasks(cut, problem, params, sequences, step, cpu::Price{1, 1});
  }
  cpu::TaskList tasks(Cut cut, int step) const { return tasks(cut, step, problem.params); }
};

using Piece = std::tuple<int, int, int>;  // sequence, head, part
// how often each item of a piece is in a task
std::map<Piece, std::vector<int>> covered(const cpu::TaskList& list) {
  std::map<Piece, std::vector<int>> items;
  for (const cpu::Task& t : list.tasks) {
    std::vector<int>& count = items[{t.sequence, t.head, t.part}];
    if (count.size() < static_cast<size_t>(t.end)) count.resize(static_cast<size_t>(t.end));
    for (int i = t.first; i < t.end; i++) count[static_cast<size_t>(i)]++;
  }
  return items;
}
void expect_groups_cover(const cpu::TaskList& list) {
  std::vector<int> seen(list.tasks.size());
  for (const cpu::Group& g : list.groups)
    for (int i = g.first; i < g.end; i++) seen.at(static_cast<size_t>(i))++;
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
}
// items [0, n) once each, of every head of every sequence, and nothing else
void expect_once(const cpu::TaskList& list, int heads, const std::vector<int>& items) {
  expect_groups_cover(list);
  auto found = covered(list);
  for (size_t b = 0; b < items.size(); b++)
    for (int h = 0; h < heads; h++) {
      const auto it = found.find({static_cast<int>(b), h, 0});
      const std::vector<int> expected(static_cast<size_t>(items[b]), 1);
      if (items[b] == 0) {
        EXPECT_EQ(it, found.end());
        continue;
      }
      ASSERT_NE(it, found.end()) << "sequence " << b << " head " << h;
      EXPECT_EQ(it->second, expected) << "sequence " << b << " head " << h;
      found.erase(it);
    }
  EXPECT_TRUE(found.empty());
}

const std::vector<std::pair<int, int>> LENGTHS = {{0, 0}, {1, 7}, {0, 5}, {97, 97}, {13, 0}, {300, 512}, {5, 1}, {0, 0}};

TEST(Tasks, RowsOfAllHeads) {
  for (int step : {0, 1, 64, 1000}) expect_once(Packed(LENGTHS).tasks(Cut::rows, step), 1, {0, 1, 0, 97, 13, 300, 5, 0});
}
TEST(Tasks, RowsOfEachHead) {
  for (int step : {0, 1, 64, 1000}) expect_once(Packed(LENGTHS).tasks(Cut::head_rows, step), 4, {0, 1, 0, 97, 13, 300, 5, 0});
}
TEST(Tasks, RowsOfAGroup) {
  for (int step : {0, 16, 512}) expect_once(Packed(LENGTHS).tasks(Cut::group_rows, step), 2, {0, 2, 0, 194, 26, 600, 10, 0});
}
TEST(Tasks, KeysOfEachHead) {
  for (int step : {0, 16, 512}) expect_once(Packed(LENGTHS).tasks(Cut::head_keys, step), 2, {0, 7, 5, 97, 0, 512, 1, 0});
}
TEST(Tasks, RowsOfTheLongestSequenceForEach) { expect_once(Packed(LENGTHS).tasks(Cut::full_rows, 64), 4, std::vector<int>(8, 300)); }

TEST(Tasks, ChunksOfKeys) {
  const Packed packed(LENGTHS, Pass::backward);
  ParamsT<double> p = packed.problem.params;
  p.split_keys = 96;
  const cpu::TaskList list = packed.tasks(Cut::chunks, 0, p);
  expect_groups_cover(list);
  std::map<Piece, int> found;
  for (const cpu::Task& t : list.tasks) {
    EXPECT_EQ(t.first, t.part * 96);
    EXPECT_EQ(t.end, std::min(t.first + 96, packed.sequences[static_cast<size_t>(t.sequence)].mask.keys));
    const bool once = found.insert({Piece{t.sequence, t.head, t.part}, 1}).second;
    EXPECT_TRUE(once);
  }
  // a sequence with rows but no keys has one task, which makes its dq zero; one without either has none
  EXPECT_EQ(found.size(), 2u * (0 + 1 + 1 + 2 + 1 + 6 + 1 + 0));
}

TEST(Tasks, SplitsOfKeys) {
  const Packed packed(LENGTHS);
  ParamsT<double> p = packed.problem.params;
  p.split_keys = 100;
  const cpu::TaskList list = packed.tasks(Cut::splits, 0, p);
  expect_groups_cover(list);
  std::map<std::pair<int, int>, std::vector<int>> keys;
  for (const cpu::Task& t : list.tasks) {
    EXPECT_EQ(t.first, t.part * 100);
    EXPECT_LE(t.end - t.first, 100);
    std::vector<int>& count = keys[{t.sequence, t.head}];
    count.resize(512);
    for (int i = t.first; i < t.end; i++) count[static_cast<size_t>(i)]++;
  }
  for (auto& [where, count] : keys) {
    const int n = packed.sequences[static_cast<size_t>(where.first)].mask.keys;
    for (int i = 0; i < 512; i++) ASSERT_EQ(count[static_cast<size_t>(i)], i < n ? 1 : 0) << where.first;
  }
}

TEST(Tasks, OneForEachQueryHead) {
  const cpu::TaskList list = Packed(LENGTHS).tasks(Cut::heads, 0);
  ASSERT_EQ(list.tasks.size(), 4u);
  for (int h = 0; h < 4; h++) EXPECT_EQ(list.tasks[static_cast<size_t>(h)].first, h);
}

// Rows and keys of sequences, and what `absent` names, are the whole array, once.
TEST(Tasks, AbsentIsWhatNoSequenceHas) {
  for (int tail : {0, 3}) {
    Packed packed(LENGTHS, Pass::backward, tail);
    const std::vector<int32_t> used_rows = {0, 1, 0, 40, 0, 299, 5, 0}, used_keys = {0, 0, 5, 97, 0, 1, 1, 0};
    packed.call[Role::used_rows] = tensor(used_rows.data(), DType::i32, {8});
    packed.call[Role::used_keys] = tensor(used_keys.data(), DType::i32, {8});
    packed.problem = describe(packed.call);
    packed.sequences = cpu::read_sequences(packed.problem, Buffers{packed.call.arrays, {}});
    std::vector<int> rows(static_cast<size_t>(packed.problem.total_rows)), keys(static_cast<size_t>(packed.problem.total_keys));
    for (size_t b = 0; b + 1 < packed.sequences.size(); b++) {
      const cpu::Sequence& s = packed.sequences[b];
      EXPECT_EQ(s.mask.rows, used_rows[b]);
      EXPECT_EQ(s.mask.keys, used_keys[b]);
      for (int i = 0; i < s.mask.rows; i++) rows.at(static_cast<size_t>(s.row_base + i))++;
      for (int i = 0; i < s.mask.keys; i++) keys.at(static_cast<size_t>(s.key_base + i))++;
    }
    for (const cpu::Task& t : packed.tasks(Cut::absent, 0).tasks) {
      const cpu::Sequence& s = packed.sequences.at(static_cast<size_t>(t.sequence));
      for (int i = t.first; i < t.end; i++)
        (t.part == 0 ? rows.at(static_cast<size_t>(s.row_base + i)) : keys.at(static_cast<size_t>(s.key_base + i)))++;
    }
    EXPECT_EQ(rows, std::vector<int>(rows.size(), 1));
    EXPECT_EQ(keys, std::vector<int>(keys.size(), 1));
  }
}

TEST(Tasks, LongestSequencesComeFirstAndLastRowsOfEach) {
  const cpu::TaskList list = Packed({{100, 100}, {700, 700}, {400, 400}}).tasks(Cut::group_rows, 128);
  ASSERT_FALSE(list.groups.empty());
  std::vector<int> order;
  for (const cpu::Group& g : list.groups) {
    order.push_back(list.tasks[static_cast<size_t>(g.first)].sequence);
    for (int i = g.first + 1; i < g.end; i++) {
      const cpu::Task &a = list.tasks[static_cast<size_t>(i - 1)], &b = list.tasks[static_cast<size_t>(i)];
      if (a.sequence == b.sequence && a.head == b.head) {
        EXPECT_GT(a.first, b.first);
      }
    }
  }
  EXPECT_EQ(order, (std::vector<int>{1, 1, 2, 2, 0}));
}

TEST(Tasks, ShortSequencesShareGroups) {
  const cpu::TaskList list = Packed(std::vector<std::pair<int, int>>(1000, {4, 4})).tasks(Cut::group_rows, 512);
  EXPECT_EQ(list.tasks.size(), 2000u);
  EXPECT_LT(list.groups.size(), 20u);
  expect_groups_cover(list);
}

// A dense backward call with a bias of the given shape: tasks by its own batch, heads, and rows or keys.
TEST(Tasks, EntriesOfABias) {
  struct Case {
    int64_t batch, heads, rows, keys;
  };
  for (const Case& c : {Case{3, 4, 50, 70}, Case{1, 4, 50, 70}, Case{3, 1, 1, 70}, Case{1, 1, 50, 1}, Case{1, 1, 1, 1}}) {
    Call call("test", Pass::backward);
    call[Role::q] = call[Role::out] = call[Role::dout] = tensor(nullptr, DType::f32, {3, 50, 4, 32});
    call[Role::k] = call[Role::v] = tensor(nullptr, DType::f32, {3, 70, 2, 32});
    call[Role::lse] = tensor(nullptr, DType::f32, {3, 4, 50});
    call[Role::bias] = tensor(nullptr, DType::f32, {c.batch, c.heads, c.rows, c.keys});
    call.options.wants = bit(Role::dbias);
    const Problem problem = describe(call);
    const auto sequences = cpu::read_sequences(problem, Buffers{call.arrays, {}});
    const auto list = [&](Cut cut) { return cpu::tasks(cut, problem, problem.params, sequences, 16, cpu::Price{1, 1}); };
    const std::vector<int> rows(static_cast<size_t>(c.batch), static_cast<int>(c.rows));
    expect_once(list(Cut::bias_rows), static_cast<int>(c.heads), rows);
    // one entry for all keys: they must be summed in one task
    expect_once(list(Cut::bias_keys), static_cast<int>(c.heads), std::vector<int>(static_cast<size_t>(c.batch), 70));
    if (c.keys == 1) {
      EXPECT_EQ(list(Cut::bias_keys).tasks.size(), static_cast<size_t>(c.batch * c.heads));
    }
  }
}

TEST(Tasks, NewKeysAndTurnedQueries) {
  Call call("test", Pass::append);
  call[Role::q] = call[Role::rotated_q] = tensor(nullptr, DType::f32, {2, 3, 4, 32});
  call[Role::k] = call[Role::v] = tensor(nullptr, DType::f32, {2, 100, 2, 32});
  call[Role::new_k] = call[Role::new_v] = tensor(nullptr, DType::f32, {2, 5, 2, 32});
  call[Role::cos] = call[Role::sin] = tensor(nullptr, DType::f32, {200, 8});
  const std::vector<int32_t> lengths = {7, 9};
  call[Role::lengths] = tensor(lengths.data(), DType::i32, {2});
  const Problem problem = describe(call);
  const auto sequences = cpu::read_sequences(problem, Buffers{call.arrays, {}});
  const auto found = covered(cpu::tasks(Cut::append, problem, problem.params, sequences, 2, cpu::Price{1, 1}));
  EXPECT_EQ(found.size(), 4u);
  for (int b = 0; b < 2; b++) {
    EXPECT_EQ(found.at({b, 0, 0}), std::vector<int>(5, 1));
    EXPECT_EQ(found.at({b, 0, 1}), std::vector<int>(3, 1));
  }
}

TEST(Tasks, NothingToDo) {
  for (Cut cut : {Cut::rows, Cut::head_rows, Cut::group_rows, Cut::head_keys, Cut::absent})
    EXPECT_TRUE(Packed({}).tasks(cut, 0).tasks.empty());
}

TEST(Sequences, OfACache) {
  const std::vector<int32_t> lengths = {5, 30}, leftpad = {2, 0}, rows = {3, 1};
  Call call("test", Pass::forward);
  call[Role::q] = tensor(nullptr, DType::f32, {2, 3, 4, 32});
  call[Role::k] = call[Role::v] = tensor(nullptr, DType::f32, {4, 64, 2, 32});
  call[Role::lengths] = tensor(lengths.data(), DType::i32, {2});
  call[Role::leftpad] = tensor(leftpad.data(), DType::i32, {2});
  call[Role::cache_rows] = tensor(rows.data(), DType::i32, {2});
  const Problem problem = describe(call);
  const auto s = cpu::read_sequences(problem, Buffers{call.arrays, {}});
  ASSERT_EQ(s.size(), 3u);
  EXPECT_EQ(s[0].mask.keys, 3);
  EXPECT_EQ(s[0].key_base, 2);
  EXPECT_EQ(s[0].key_batch, 3);
  EXPECT_EQ(s[1].mask.keys, 30);
  EXPECT_EQ(s[1].key_batch, 1);
  EXPECT_EQ(s[1].mask.shift, 27);
  EXPECT_EQ(s[1].lse_base, 4 * 3);
}

TEST(Sequences, PagesKeepTheirRows) {
  const std::vector<int32_t> table = {4, 2, 0, 7, 5, 1};
  Call call("test", Pass::forward);
  call[Role::q] = tensor(nullptr, DType::f32, {2, 1, 4, 32});
  call[Role::k] = call[Role::v] = tensor(nullptr, DType::f32, {8, 16, 2, 32});
  call[Role::pages] = tensor(table.data(), DType::i32, {2, 3});
  const Problem problem = describe(call);
  const auto s = cpu::read_sequences(problem, Buffers{call.arrays, {}});
  EXPECT_EQ(s[1].pages, table.data() + 3);
  EXPECT_EQ(s[0].mask.keys, 48);
  const Strides k = problem.params.k;
  EXPECT_EQ(cpu::key_offset(k, s[1], problem.params.page_size, 17, 1), 5 * k.batch + 1 * k.row + 1 * k.head);
}
}  // namespace
