// The emulator's Python interface.
#pragma once

#include <pybind11/pybind11.h>

namespace fastres::emulator {

void bind_emulator(pybind11::module_& parent);

}  // namespace fastres::emulator
