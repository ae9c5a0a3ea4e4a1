#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/bind_pieces.h"
#include "emulator/mbarrier.h"
#include "emulator/shared_order.h"
#include "emulator/tensor_map.h"
#include "emulator/wgmma.h"

namespace fastres::emulator {
namespace {

namespace py = pybind11;
template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

TensorType tensor_type_of(const std::string& name) {
  static const std::map<std::string, TensorType> types = {
      {"u8", TensorType::kU8},   {"u16", TensorType::kU16},  {"u32", TensorType::kU32}, {"s32", TensorType::kS32},
      {"u64", TensorType::kU64}, {"s64", TensorType::kS64},  {"f16", TensorType::kF16}, {"f32", TensorType::kF32},
      {"f64", TensorType::kF64}, {"bf16", TensorType::kBF16}};
  const auto found = types.find(name);
  if (found == types.end()) throw std::invalid_argument("no tensor map has elements of type '" + name + "'");
  return found->second;
}

Swizzle swizzle_of(int bytes) {
  for (const Swizzle swizzle : {Swizzle::k32, Swizzle::k64, Swizzle::k128}) {
    if (bytes == static_cast<int>(swizzle_span(swizzle))) return swizzle;
  }
  if (bytes == 0) return Swizzle::kNone;
  throw std::invalid_argument("swizzle is " + std::to_string(bytes) + ", expected 0, 32, 64 or 128");
}

TensorShape shape_of(const std::string& type, uint64_t address, const std::vector<uint64_t>& sizes,
                     const std::vector<uint64_t>& strides, const std::vector<uint32_t>& element_strides, int swizzle,
                     bool fill_nan) {
  return {tensor_type_of(type), address, sizes, strides, element_strides, swizzle_of(swizzle), fill_nan};
}

py::bytes blob_of(const TensorMap& map) {
  char blob[128] = {};
  std::memcpy(blob, &map, sizeof map);
  return py::bytes(blob, sizeof blob);
}

TensorMap map_of(const std::string& blob) {
  TensorMap map;
  if (blob.size() != 128) throw std::invalid_argument("a tensor map has 128 bytes, got " + std::to_string(blob.size()));
  std::memcpy(&map, blob.data(), sizeof map);
  return map;
}

// (global address, offset in shared memory, bytes, first and end of what is inside) of each row.
std::vector<std::vector<uint64_t>> box_rows(const std::string& blob, const std::vector<int32_t>& coordinates,
                                            const std::vector<uint16_t>& offsets) {
  std::array<int32_t, kMaxRank> at{};
  std::array<uint16_t, 3> shift{};
  std::copy_n(coordinates.begin(), std::min<size_t>(coordinates.size(), kMaxRank), at.begin());
  std::copy_n(offsets.begin(), std::min<size_t>(offsets.size(), 3), shift.begin());
  std::vector<std::vector<uint64_t>> rows;
  for_each_row(map_of(blob), at, shift, [&](const BoxRow& row) {
    rows.push_back({row.global, row.shared_offset, row.bytes, row.first, row.end});
  });
  return rows;
}

Knowledge knowledge_of(const std::map<Agent, uint32_t>& order, const std::map<Agent, uint32_t>& proxied = {}) {
  Knowledge known;
  for (const auto& [agent, time] : order) known.order.raise({agent, time});
  for (const auto& [agent, time] : proxied) known.proxied.raise({agent, time});
  return known;
}

void bind_mbarrier(py::module_& m) {
  using py::arg;
  py::class_<Mbarrier>(m, "Mbarrier", "One mbarrier object; methods return what is undefined about the call, or ''.")
      .def(py::init<>())
      .def("init", &Mbarrier::init, arg("count"), arg("agent") = 0)
      .def("invalidate", &Mbarrier::invalidate)
      .def(
          "arrive",
          [](Mbarrier& self, uint32_t count, const std::map<Agent, uint32_t>& clock, bool drop, bool no_complete) {
            return self.arrive(count, knowledge_of(clock), drop, no_complete);
          },
          arg("count") = 1, arg("clock") = std::map<Agent, uint32_t>{}, arg("drop") = false, arg("no_complete") = false)
      .def("expect_bytes", &Mbarrier::expect_bytes)
      .def("complete_bytes", [](Mbarrier& self, uint32_t bytes,
                                uint32_t issued) { return self.complete_bytes(bytes, issued, Knowledge()); })
      .def("parity_done", &Mbarrier::parity_done)
      .def("token_done", &Mbarrier::token_done)
      .def("token", &Mbarrier::token)
      .def("watch", &Mbarrier::watch)
      .def("covers",
           [](const Mbarrier& self, Agent agent, uint32_t time) { return self.released().order.covers({agent, time}); })
      .def_property_readonly("phase", &Mbarrier::phase)
      .def("leftover", &Mbarrier::leftover)
      .def("describe", &Mbarrier::describe);
  m.def("pending_count", &Mbarrier::token_pending, "mbarrier.pending_count of a token.");
}

void bind_shared_order(py::module_& m) {
  using py::arg;
  using Times = std::map<Agent, uint32_t>;
  const auto access = [](SharedOrder& self, bool write, uint32_t address, uint32_t bytes, Agent agent, uint32_t time,
                         const Times& order, const Times& proxied, bool async, bool atomic) {
    const SharedAccess how{{agent, time}, async ? Proxy::Async : Proxy::Generic, atomic};
    const Knowledge known = knowledge_of(order, proxied);
    const Conflict conflict = write ? self.write(address, bytes, how, known) : self.read(address, bytes, how, known);
    static const char* const names[] = {"", "race", "proxy"};
    return names[static_cast<int>(conflict.kind)];
  };
  py::class_<SharedOrder>(m, "SharedOrder", "Race detection over shared memory: '', 'race' or 'proxy'.")
      .def(py::init<uint32_t>())
      .def("access", access, arg("write"), arg("address"), arg("bytes"), arg("agent"), arg("time"),
           arg("order") = Times{}, arg("proxied") = Times{}, arg("async_") = false, arg("atomic") = false);
}

// Shared memory starts at address 0 of `memory`; returns (64, k) of A, and (k, columns) of B.
Array<float> gather(const std::string& operand, const Element element, uint64_t descriptor, bool mn_major, int columns,
                    const Array<uint8_t>& memory, float scale) {
  const WgmmaDescriptor d = decode_descriptor(descriptor);
  const std::string error = check_descriptor(d, element, mn_major);
  if (!error.empty()) throw std::invalid_argument(error);
  const ChunkReader chunk = [&](uint32_t address) {
    if (address + 16 > memory.size()) throw std::out_of_range("chunk at " + std::to_string(address));
    return memory.data() + address;
  };
  const py::ssize_t k = wgmma_k(element);
  if (operand == "a") {
    Array<float> a({static_cast<py::ssize_t>(kWarpgroupRows), k});
    gather_wgmma_a(d, element, mn_major, 0, kWarpgroupRows, scale, chunk, a.mutable_data());
    return a;
  }
  Array<float> b({k, static_cast<py::ssize_t>(columns)});
  gather_wgmma_b(d, element, mn_major, columns, scale, chunk, b.mutable_data());
  return b;
}

Array<float> accumulators(const Array<uint32_t>& registers, const std::string& kind, int columns) {
  std::vector<const uint32_t*> rows;
  for (py::ssize_t i = 0; i < registers.shape(0); ++i) rows.push_back(registers.data() + i * kWarp);
  Array<float> sum({static_cast<py::ssize_t>(16), static_cast<py::ssize_t>(columns)});
  gather_accumulators(kind == "f16" ? Accumulator::kF16 : Accumulator::kF32, columns, rows.data(), sum.mutable_data());
  return sum;
}

}  // namespace

void bind_hopper(py::module_& m) {
  using py::arg;
  bind_mbarrier(m);
  bind_shared_order(m);
  m.def(
      "encode_tiled",
      [](const std::string& type, uint64_t address, const std::vector<uint64_t>& sizes,
         const std::vector<uint64_t>& strides, const std::vector<uint32_t>& element_strides, int swizzle, bool fill_nan,
         const std::vector<uint32_t>& box) {
        return blob_of(encode_tiled(shape_of(type, address, sizes, strides, element_strides, swizzle, fill_nan), box));
      },
      arg("type"), arg("address"), arg("sizes"), arg("strides"), arg("element_strides"), arg("swizzle"),
      arg("fill_nan"), arg("box"), "The 128 bytes of a tiled tensor map; dimensions innermost first.");
  m.def(
      "encode_im2col",
      [](const std::string& type, uint64_t address, const std::vector<uint64_t>& sizes,
         const std::vector<uint64_t>& strides, const std::vector<uint32_t>& element_strides, int swizzle, bool fill_nan,
         const std::vector<int>& lower, const std::vector<int>& upper, uint32_t channels, uint32_t pixels) {
        return blob_of(encode_im2col(shape_of(type, address, sizes, strides, element_strides, swizzle, fill_nan), lower,
                                     upper, channels, pixels));
      },
      arg("type"), arg("address"), arg("sizes"), arg("strides"), arg("element_strides"), arg("swizzle"),
      arg("fill_nan"), arg("lower"), arg("upper"), arg("channels"), arg("pixels"),
      "The 128 bytes of an im2col tensor map; dimensions innermost first, corners W first.");
  m.def("box_rows", &box_rows, arg("map"), arg("coordinates"), arg("offsets") = std::vector<uint16_t>{},
        "Rows (global address, shared offset, bytes, first, end) that one TMA instruction walks.");
  m.def("box_bytes", [](const std::string& blob) { return box_bytes(map_of(blob)); });
  m.def("swizzled", [](int span, uint32_t address) { return swizzled(swizzle_of(span), address); });
  m.def("wgmma_gather", [](const std::string& operand, const std::string& element, uint64_t descriptor, bool mn_major,
                           int columns, const Array<uint8_t>& memory, float scale) {
    return gather(operand, element_of(element), descriptor, mn_major, columns, memory, scale);
  });
  m.def("wgmma_accumulators", &accumulators, arg("registers"), arg("kind"), arg("columns"),
        "One warp's (16, columns) accumulators from registers (count, 32).");
}

}  // namespace fastres::emulator
