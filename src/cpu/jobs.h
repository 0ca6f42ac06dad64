// What the name of a launch stands for: a function, how its tasks are cut, and what they cost.
#pragma once
#include "cpu/dispatch.h"
#include "cpu/plan.h"

namespace fa::cpu {
struct Work {
  const char* name;
  Cut cut;
  Price (*price)(const ParamsT<double>&);         // of the launch
  void (*run)(const JobT<double>&, const Task&);  // a kernel for the base instruction set, or null:
  Entry (Isa::*entries)[3];                       // kernels of each instruction set, by dtype
};
const Work& work_of(const char* kernel);
}  // namespace fa::cpu
