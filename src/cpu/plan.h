// Planning on the CPU: from a Problem to launches, and from a launch to its tasks. Pure functions of numbers.
#pragma once
#include <vector>

#include "core/plan.h"
#include "cpu/job.h"

namespace fa::cpu {
Plan plan(const Problem& problem, const Kernel& row, const Device& device);

// How a launch falls into tasks.
enum class Cut {
  rows,        // (sequence, rows), all heads
  head_rows,   // (sequence, query head, rows)
  group_rows,  // (sequence, key/value head, rows of the group: position * group + member), last rows first
  head_keys,   // (sequence, key/value head, keys)
  chunks,      // (sequence, key/value head, keys of one chunk of split_keys); part: the chunk. At least one, so that rows are written
  splits,      // (sequence, key/value head or -1 for all, keys of one split of split_keys); part: the split. At least one
  heads,       // query heads, all sequences
  bias_rows,   // (batch index, head, rows) of attn_bias
  bias_keys,   // (batch index, head, keys) of attn_bias; all keys where it has one entry for them
  full_rows,   // (sequence, query head, rows), of the longest sequence for each
  absent,      // part 0: rows, part 1: keys between the sequences, from their own ends on
  append,      // part 0: new keys, part 1: queries, all heads
};

// Tasks [first, end) that share packed tiles (one head of one sequence, or several when they are short): a worker stays with them.
struct Group {
  int first, end;
};
struct TaskList {
  std::vector<Task> tasks;
  std::vector<Group> groups;
  double cost = 0;  // of all tasks, in ns as the table's guess of speed has it
};
// What one element costs: a pair of a query and a key that see each other, and a row or key of one head, in ns.
struct Price {
  double pair, row;
};
// `step`: rows, keys or heads a task; `sequences`: batch of them and the empty last one (see read_sequences).
TaskList tasks(Cut cut, const Problem& problem, const ParamsT<double>& params, const std::vector<Sequence>& sequences, int step,
               const Price& price);
}  // namespace fa::cpu
