#pragma once
#include "cpu/kernels.h"
namespace bantam { namespace { void fill_weights_avx512(Kernels&) {} } }
