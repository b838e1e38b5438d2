// The instruction sets of this build and the choice among them. Every supported one is callable in
// one process. BANTAM_ISA=name forces one; an unknown or unsupported name is refused with the list.
#pragma once

#include <span>

#include "base/result.h"
#include "cpu/kernels.h"

namespace bantam {

struct Isa {
  const char* name;
  void (*fill)(Kernels&);
  bool (*supported)();
  int nominal_macs;  // int8 multiply-adds of a core in a cycle
};

std::span<const Isa> all_isas();
// The whole table of an instruction set: scalar first, then what it improves.
const Kernels& kernels_of(const Isa& isa);
// forced: null or empty for the best one.
Result<const Isa*> choose_isa(const char* forced);

}  // namespace bantam
