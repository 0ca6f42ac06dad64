// The tasks of a launch: which rows, keys or heads each has, which of them share packed tiles, and what they cost.
#include <algorithm>
#include <utility>

#include "cpu/plan.h"
#include "cpu/tiles.h"

namespace fa::cpu {
namespace {
constexpr double TASK_NS = 200e3;  // where no kernel says how many rows a task has
constexpr double GROUP_NS = 30e3;  // heads of short sequences are put together up to this, so that taking a task stays cheap

// how many (row, key) pairs a mask lets through, from three of its rows
double visible_pairs(const Mask& mask) {
  if (mask.rows <= 0) return 0;
  const auto seen = [&](int row) {
    const Interval<int> keys = visible_keys(mask, row);
    return static_cast<double>(std::max(keys.end - keys.first, 0));
  };
  return mask.rows * (seen(0) + 2 * seen(mask.rows / 2) + seen(mask.rows - 1)) / 4;
}

// the same for keys [first, end) alone, from three of them
double visible_pairs(const Mask& mask, int first, int end) {
  if (end <= first) return 0;
  const auto seen = [&](int key) {
    const Interval<int> rows = visible_rows(mask, key);
    return static_cast<double>(std::max(rows.end - rows.first, 0));
  };
  return (end - first) * (seen(first) + 2 * seen(first + (end - first) / 2) + seen(end - 1)) / 4;
}

class Cutter {
 public:
  Cutter(const Problem& problem, const ParamsT<double>& params, const std::vector<Sequence>& sequences, int step, const Price& price)
      : problem_(problem), p_(params), all_(sequences), count_(static_cast<int>(sequences.size()) - 1), step_(step), price_(price) {}
  TaskList list;

  // `n` items of one head cut into tasks; `ns`: what all of them cost
  void cut(int sequence, int head, int n, double ns, int part = 0, bool backwards = false) {
    if (n <= 0) return;
    const int step = step_ > 0 ? step_ : static_cast<int>(std::clamp(TASK_NS / std::max(ns / n, 1.0), 1.0, static_cast<double>(n)));
    const int count = (n - 1) / step + 1;
    for (int i = 0; i < count; i++) {
      const int first = (backwards ? count - 1 - i : i) * step;
      add(Task{sequence, head, first, first + std::min(step, n - first), part});
    }
    list.cost += ns;
  }
  void add(const Task& task) { list.tasks.push_back(task); }
  // Tasks that cost `ns` and share tiles are about to be added: to the open group if both are short, else to one of their own.
  void open_group(double ns) {
    if (open_ns_ + ns > GROUP_NS) end_group();
    open_ns_ += ns;
  }
  void end_group() {
    const int end = static_cast<int>(list.tasks.size());
    if (end > open_first_) {
      list.groups.push_back(Group{open_first_, end});
      group_ns_.push_back(open_ns_);
    }
    open_first_ = end;
    open_ns_ = 0;
  }
  // longest first; equal ones stay in order, so that neighbours in memory are worked on together
  void sort_groups() {
    std::vector<int> order(list.groups.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i);
    const auto longer = [&](int a, int b) { return group_ns_[static_cast<size_t>(a)] > group_ns_[static_cast<size_t>(b)]; };
    std::stable_sort(order.begin(), order.end(), longer);
    std::vector<Group> sorted;
    sorted.reserve(order.size());
    for (int i : order) sorted.push_back(list.groups[static_cast<size_t>(i)]);
    list.groups.swap(sorted);
  }

  const Mask& mask(int b) const { return all_[static_cast<size_t>(b)].mask; }
  void rows() {
    for (int b = 0; b < count_; b++) cut(b, 0, mask(b).rows, price_.row * p_.heads * mask(b).rows);
  }
  void full_rows() {
    for (int b = 0; b < count_; b++)
      for (int h = 0; h < p_.heads; h++) cut(b, h, p_.mask.rows, price_.pair * visible_pairs(mask(b)) + price_.row * p_.mask.rows);
  }
  void head_rows() {
    for (int b = 0; b < count_; b++) {
      const double ns = price_.pair * visible_pairs(mask(b)) + price_.row * mask(b).rows;
      for (int h = 0; h < p_.heads; h++) cut(b, h, mask(b).rows, ns);
    }
  }
  void head_keys() {
    for (int b = 0; b < count_; b++) {
      const double ns = p_.group * price_.pair * visible_pairs(mask(b)) + price_.row * mask(b).keys;
      for (int h = 0; h < p_.kv_heads; h++) cut(b, h, mask(b).keys, ns);
    }
  }
  void group_rows() {
    for (int b = 0; b < count_; b++) {
      const double ns = p_.group * (price_.pair * visible_pairs(mask(b)) + price_.row * mask(b).rows);
      for (int h = 0; h < p_.kv_heads; h++) {
        open_group(ns);
        cut(b, h, mask(b).rows * p_.group, ns, 0, true);
      }
    }
    end_group();
    sort_groups();
  }
  void chunks() {
    for (int b = 0; b < count_; b++) {
      const Mask& m = mask(b);
      if (m.rows <= 0 && m.keys <= 0) continue;
      const int parts = backward_parts(m.keys, p_.split_keys);
      for (int h = 0; h < p_.kv_heads; h++)
        for (int part = 0; part < parts; part++) {
          const Task task{b, h, part * p_.split_keys, std::min(m.keys, (part + 1) * p_.split_keys), part};
          const double ns = p_.group * (price_.pair * visible_pairs(m, task.first, task.end) + price_.row * m.rows);
          open_group(ns);
          add(task);
          list.cost += ns;
        }
    }
    end_group();
    sort_groups();
  }
  void splits() {
    const bool all_heads = decode_all_heads(p_.k, p_.v);
    for (int b = 0; b < count_; b++) {
      const Mask& m = mask(b);
      if (m.rows <= 0) continue;
      const int parts = std::max(1, divide_up(m.keys, p_.split_keys)), heads = all_heads ? 1 : p_.kv_heads;
      for (int h = 0; h < heads; h++)
        for (int part = 0; part < parts; part++) {
          const int first = part * p_.split_keys;
          add(Task{b, all_heads ? -1 : h, first, std::min(m.keys, first + p_.split_keys), part});
        }
      list.cost += p_.heads * (price_.pair * visible_pairs(m) + price_.row * m.rows);
    }
  }
  void heads() {
    double rows = 0;
    for (int b = 0; b < count_; b++) rows += mask(b).rows;
    step_ = 1;
    cut(0, 0, p_.heads, price_.row * rows * p_.heads);
  }
  void bias_rows() {
    each_bias([&](int b, int h, double ns) { cut(b, h, static_cast<int>(problem_.bias_shape[2]), ns); });
  }
  void bias_keys() {
    each_bias([&](int b, int h, double ns) {
      if (p_.dbias.key != 0) return cut(b, h, p_.mask.keys, ns);
      add(Task{b, h, 0, p_.mask.keys, 0});
      list.cost += ns;
    });
  }
  // A sequence's own rows and keys end where it says; its room ends where the next one begins (dense: at the full length).
  void absent() {
    const bool packed = (problem_.needs & VARLEN) != 0;
    for (int b = 0; b <= count_; b++) {
      const Sequence& s = all_[static_cast<size_t>(b)];
      if (!packed && b == count_) break;
      const Int64 next_row = b < count_ ? all_[static_cast<size_t>(b) + 1].row_base : problem_.total_rows;
      const Int64 next_key = b < count_ ? all_[static_cast<size_t>(b) + 1].key_base : problem_.total_keys;
      gap(b, s.mask.rows, packed ? next_row - s.row_base : problem_.max_rows, 0);
      if (problem_.pass == Pass::backward) gap(b, s.mask.keys, packed ? next_key - s.key_base : problem_.max_keys, 1);
    }
  }
  void append() {
    for (int b = 0; b < count_; b++) {
      cut(b, 0, problem_.new_rows, price_.row * p_.kv_heads * problem_.new_rows);
      if (problem_.wanted(Role::rotated_q))
        cut(b, 0, static_cast<int>(problem_.max_rows), price_.row * p_.heads * static_cast<double>(problem_.max_rows), 1);
    }
  }

 private:
  // each (batch, head) of the bias's own shape, and what all that is summed into it costs
  template <class Body>
  void each_bias(const Body& body) const {
    const int64_t* shape = problem_.bias_shape;
    double ns = 0;
    for (int b = 0; b < count_; b++) ns += p_.heads * price_.pair * visible_pairs(mask(b));
    ns /= static_cast<double>(std::max<int64_t>(1, shape[0] * shape[1]));
    for (int b = 0; b < shape[0]; b++)
      for (int h = 0; h < shape[1]; h++) body(b, h, ns);
  }
  void gap(int b, int first, Int64 end, int part) {
    if (end <= first) return;
    add(Task{b, 0, first, static_cast<int>(end), part});
    list.cost += price_.row * p_.heads * static_cast<double>(end - first);
  }
  const Problem& problem_;
  const ParamsT<double>& p_;
  const std::vector<Sequence>& all_;
  int count_, step_;
  Price price_;
  int open_first_ = 0;  // first task of the open group
  double open_ns_ = 0;
  std::vector<double> group_ns_;
};
}  // namespace

TaskList tasks(Cut cut, const Problem& problem, const ParamsT<double>& params, const std::vector<Sequence>& sequences, int step,
               const Price& price) {
  Cutter cutter(problem, params, sequences, step, price);
  switch (cut) {
    case Cut::rows: cutter.rows(); break;
    case Cut::full_rows: cutter.full_rows(); break;
    case Cut::head_rows: cutter.head_rows(); break;
    case Cut::group_rows: cutter.group_rows(); break;
    case Cut::head_keys: cutter.head_keys(); break;
    case Cut::chunks: cutter.chunks(); break;
    case Cut::splits: cutter.splits(); break;
    case Cut::heads: cutter.heads(); break;
    case Cut::bias_rows: cutter.bias_rows(); break;
    case Cut::bias_keys: cutter.bias_keys(); break;
    case Cut::absent: cutter.absent(); break;
    case Cut::append: cutter.append(); break;
  }
  cutter.end_group();  // kernels that keep nothing between tasks: all of them are one group
  return std::move(cutter.list);
}
}  // namespace fa::cpu
