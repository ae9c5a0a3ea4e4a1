// fastres._C.pieces: the emulator's number formats, fragments and Hopper objects one by one, for the tests.
#pragma once

#include <pybind11/pybind11.h>

namespace fastres::emulator {

void bind_pieces(pybind11::module_& parent);

}  // namespace fastres::emulator
