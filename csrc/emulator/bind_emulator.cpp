// fastres._C.emulator: what fastres/emulator/ is made of. Addresses cross as integers, parameters as bytes.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "emulator/emulator.h"
#include "emulator/machine.h"

namespace py = pybind11;

namespace fastres::emulator {

namespace {

py::dict to_dict(const Finding& f) {
  py::dict d;
  d["kind"] = f.kind;
  d["message"] = f.message;
  d["expected"] = f.expected;
  d["kernel"] = f.kernel;
  d["block"] = f.block;
  d["thread"] = f.thread;
  d["warp"] = f.warp;
  d["lane"] = f.lane;
  d["ptx_line"] = f.ptx_line;
  d["ptx"] = f.ptx;
  d["source"] = f.source;
  d["space"] = f.space;
  d["address"] = f.address;
  d["bytes"] = f.bytes;
  d["count"] = f.count;
  return d;
}

py::dict to_dict(const Report& r) {
  py::dict d;
  py::list findings;
  for (const Finding& finding : r.findings) findings.append(to_dict(finding));
  py::dict traffic;
  for (const auto& [space, t] : r.traffic) {
    traffic[py::str(space)] = py::make_tuple(t.read_requested, t.read_unique, t.write_requested, t.write_unique);
  }
  d["kernel"] = r.kernel;
  d["seed"] = r.seed;
  d["findings"] = findings;
  d["instructions"] = r.instructions;
  d["traffic"] = traffic;
  d["warp_instructions"] = r.warp_instructions;
  d["thread_instructions"] = r.thread_instructions;
  d["macs"] = r.macs;
  d["blocks"] = r.blocks;
  return d;
}

py::list describe_kernels(const Program& program) {
  py::list all;
  for (const auto& kernel : program.kernels) {
    py::dict d;
    py::list params;
    for (const ptx::Variable& param : kernel->function->params) {
      params.append(py::make_tuple(param.name, param.type, param.offset, param.bytes));
    }
    d["name"] = kernel->name;
    d["params"] = params;
    d["param_bytes"] = kernel->param_bytes;
    d["static_shared"] = kernel->static_shared_end - kernel->shared_base;
    d["opcodes"] = kernel->opcodes;
    d["reqntid"] = kernel->function->reqntid;
    d["cluster"] = kernel->function->cluster;
    all.append(d);
  }
  return all;
}

using RegionTuple = std::tuple<std::string, uint64_t, uint64_t, bool>;

// (report, the finding that ended the launch or None)
py::tuple launch(const Program& program, const std::string& name, Extent grid, Extent block, Extent cluster,
                 const py::bytes& params, const std::vector<RegionTuple>& tensors, uint32_t shared, uint64_t seed,
                 bool strict, const std::vector<std::string>& ignore, uint32_t resident, uint64_t limit,
                 const py::object& trace) {
  Launch how;
  how.grid = grid;
  how.block = block;
  how.cluster = cluster;
  how.dynamic_shared = shared;
  const std::string bytes = params;
  how.params.assign(bytes.begin(), bytes.end());
  how.seed = seed;
  how.strict = strict;
  how.ignore = ignore;
  how.resident = resident;
  how.limit = limit;
  if (!trace.is_none()) {
    how.trace = [trace](const std::string& line) {
      const py::gil_scoped_acquire gil;
      trace(line);
    };
  }
  std::vector<Region> regions;
  for (const auto& [label, begin, size, initialized] : tensors)
    regions.push_back({label, begin, size, initialized, true});
  Machine machine(program, program.kernel(name), std::move(how), std::move(regions));
  Report report;
  py::object fatal = py::none();
  try {
    const py::gil_scoped_release release;
    report = machine.run();
  } catch (const FaultError& error) {
    report = machine.stopped();
    report.findings.push_back(error.finding);
    fatal = to_dict(error.finding);
  }
  return py::make_tuple(to_dict(report), fatal);
}

}  // namespace

void bind_emulator(py::module_& parent) {
  py::module_ m = parent.def_submodule("emulator", "Runs PTX on the CPU; fastres.emulator is its front.");
  py::register_exception<PtxError>(m, "PtxError", PyExc_ValueError);
  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init<const std::string&>(), py::arg("ptx"), py::call_guard<py::gil_scoped_release>())
      .def("kernels", &describe_kernels)
      .def("launch", &launch, py::arg("name"), py::arg("grid"), py::arg("block"), py::arg("cluster"), py::arg("params"),
           py::arg("regions"), py::arg("shared"), py::arg("seed"), py::arg("strict"), py::arg("ignore"),
           py::arg("resident"), py::arg("limit"), py::arg("trace"));
}

}  // namespace fastres::emulator
