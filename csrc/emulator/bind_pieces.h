// fastres._C.pieces: the emulator's number formats, fragments and Hopper objects one by one, for the tests.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "emulator/mma_fragments.h"

namespace fastres::emulator {

void bind_pieces(pybind11::module_& parent);
void bind_hopper(pybind11::module_& pieces);

Element element_of(const std::string& name);

}  // namespace fastres::emulator
