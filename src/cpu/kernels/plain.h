// Attention one element at a time, straight from src/semantics: slow, obvious, takes every call; the last rows of the table, and the
// kernels of float64. Products and sums are float64 whatever the dtype.
// Tile     one row (or key, or row of attn_bias) at a time; a task is as many as take about 200 us.
// Who      one worker a task, alone: nothing is shared, and every sum has one order.
// Memory   a few rows of float64; K and V are read in place, once for each row.
// Speed    about 1 GFLOP/s a core.
//
//   forward          rows of one query head -> out, lse
//   row_gradient     rows of one query head -> dq
//   key_gradient     keys of one key/value head -> dk, dv
//   bias_gradient    rows of attn_bias (task.sequence: its batch index, task.head: its head) -> dbias
//   probabilities    rows of one query head -> S_dmask, by a softmax of its own (an lse of float32 costs digits); 0 where no sequence is
#pragma once
#include "cpu/job.h"

namespace fa::cpu::plain {
void forward(const JobT<double>& job, const Task& task);
void row_gradient(const JobT<double>& job, const Task& task);
void key_gradient(const JobT<double>& job, const Task& task);
void bias_gradient(const JobT<double>& job, const Task& task);
void probabilities(const JobT<double>& job, const Task& task);
}  // namespace fa::cpu::plain
