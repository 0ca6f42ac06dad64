// The small kernels around attention proper, compiled for the base instruction set.
// Tile     a row of all heads at a time.
// Who      one worker a task: a range of rows of one sequence with all heads, unless said otherwise.
// Memory   arrays are read and written in place, once.
// Speed    a few operations an element: bound by memory. sink_gradient: one exponential a row and head.
//
//   delta          rowsum(dout * out) - dlse -> delta; 0 for rows with lse -inf
//   append         part 0: new keys and values (rotated) -> caches at length + t, and rotated_k; part 1: rotated queries -> rotated_q
//   merge          rows of one query head: part_out, part_lse -> out, lse; a part with lse -inf counts for nothing, whatever it holds
//   sum_parts      the dq of each key chunk, added in the order of chunks -> dq
//   sink_gradient  a task is one head: the sum over all rows of all sequences, in order -> dsink
//   clear          part 0: rows that no query has -> out, dq 0, lse -inf, delta 0; part 1: keys that no sequence has -> dk, dv 0
#pragma once
#include "cpu/job.h"

namespace fa::cpu::small {
void delta(const JobT<double>& job, const Task& task);
void append(const JobT<double>& job, const Task& task);
void merge(const JobT<double>& job, const Task& task);
void sum_parts(const JobT<double>& job, const Task& task);
void sink_gradient(const JobT<double>& job, const Task& task);
void clear(const JobT<double>& job, const Task& task);
}  // namespace fa::cpu::small
