// fastres._C: everything Python can call, on one page. Pointers cross as integers (tensor.data_ptr()), so no torch
// header is needed and one build serves every torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "params.h"
#ifdef FASTRES_EMULATOR
#include "emulator/bind_pieces.h"
#include "emulator/emulator.h"
#endif

namespace py = pybind11;

namespace {

// What was built, with what, and if CUDA was left out, why.
py::dict build_info() {
  py::dict info;
  info["compiler"] = FASTRES_COMPILER;
#ifdef FASTRES_CUDA
  info["cuda"] = FASTRES_CUDA_VERSION;
#else
  info["cuda"] = py::none();
#endif
  info["cuda_missing"] = std::string(FASTRES_CUDA_WHY);
  info["archs"] = py::str(FASTRES_ARCHS).attr("split")();
  info["kernels"] = std::vector<std::string>{};
#ifdef FASTRES_EMULATOR
  info["emulator"] = true;
#else
  info["emulator"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native code of fastres: CUDA kernel launchers and the PTX emulator.";
  m.def("build_info", &build_info, "What was built: compiler, cuda, cuda_missing, archs, kernels, emulator.");
#ifdef FASTRES_EMULATOR
  fastres::emulator::bind_emulator(m);
  fastres::emulator::bind_pieces(m);
#endif
}
