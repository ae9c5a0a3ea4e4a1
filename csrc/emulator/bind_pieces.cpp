#include "emulator/bind_pieces.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/mma_fragments.h"
#include "emulator/numeric.h"

namespace fastres::emulator {
namespace {

namespace py = pybind11;
template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class To, class From, class Function>
Array<To> map(const Array<From>& from, Function&& function) {
  Array<To> to(from.size());
  const From* source = from.data();
  To* target = to.mutable_data();
  for (py::ssize_t i = 0; i < from.size(); ++i) target[i] = function(source[i]);
  return to;
}

// Calls body(Format{}) for the format named.
template <class Body>
auto with_format(const std::string& name, Body&& body) {
  if (name == "f16") return body(F16{});
  if (name == "bf16") return body(BF16{});
  if (name == "tf32") return body(TF32{});
  if (name == "e4m3") return body(E4M3{});
  if (name == "e5m2") return body(E5M2{});
  throw std::invalid_argument("format must be f16, bf16, tf32, e4m3 or e5m2, got '" + name + "'");
}

Rounding rounding_of(const std::string& name) {
  if (name == "rn") return Rounding::kNearestEven;
  if (name == "rz") return Rounding::kZero;
  if (name == "rm") return Rounding::kDown;
  if (name == "rp") return Rounding::kUp;
  if (name == "rna") return Rounding::kNearestAway;
  throw std::invalid_argument("rounding must be rn, rz, rm, rp or rna, got '" + name + "'");
}

Array<float> decode_array(const std::string& format, const Array<uint32_t>& bits) {
  return with_format(
      format, [&](auto f) { return map<float>(bits, [](uint32_t value) { return decode<decltype(f)>(value); }); });
}

template <class Real>
Array<uint32_t> encode_array(const std::string& format, const Array<Real>& values, const std::string& rounding,
                             bool saturate, bool relu) {
  const EncodeOptions options{rounding_of(rounding), saturate, relu};
  return with_format(format, [&](auto f) {
    return map<uint32_t>(values, [&](Real value) { return encode<decltype(f)>(value, options); });
  });
}

Array<uint32_t> fma_array(const std::string& format, const Array<uint32_t>& a, const Array<uint32_t>& b,
                          const Array<uint32_t>& c) {
  Array<uint32_t> out(a.size());
  with_format(format, [&](auto f) {
    for (py::ssize_t i = 0; i < a.size(); ++i) {
      out.mutable_data()[i] = fma<decltype(f)>(a.data()[i], b.data()[i], c.data()[i]);
    }
  });
  return out;
}

// Register arrays are (registers, 32 lanes).
std::vector<const uint32_t*> rows_of(const Array<uint32_t>& array) {
  std::vector<const uint32_t*> rows;
  for (py::ssize_t i = 0; i < array.shape(0); ++i) rows.push_back(array.data() + i * kWarp);
  return rows;
}

Array<uint32_t> mma(const std::string& a_element, const std::string& b_element, const std::string& accumulator, int k,
                    const Array<uint32_t>& a, const Array<uint32_t>& b, const Array<uint32_t>& c, bool satfinite,
                    int repeat) {
  const Accumulator kind = accumulator == "f32"   ? Accumulator::kF32
                           : accumulator == "f16" ? Accumulator::kF16
                                                  : Accumulator::kS32;
  Array<uint32_t> d({c.shape(0), static_cast<py::ssize_t>(kWarp)});
  std::vector<uint32_t*> out;
  for (py::ssize_t i = 0; i < c.shape(0); ++i) out.push_back(d.mutable_data() + i * kWarp);
  const auto a_rows = rows_of(a), b_rows = rows_of(b), c_rows = rows_of(c);
  for (int i = 0; i < repeat; ++i) {
    mma_m16n8(element_of(a_element), element_of(b_element), kind, k, a_rows.data(), b_rows.data(), c_rows.data(),
              out.data(), satfinite);
  }
  return d;
}

Array<uint32_t> ldmatrix(const Array<uint16_t>& matrix, bool trans) {
  const uint8_t* rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = reinterpret_cast<const uint8_t*>(matrix.data() + 8 * i);
  Array<uint32_t> lanes(kWarp);
  ldmatrix_m8n8(rows, trans, lanes.mutable_data());
  return lanes;
}

Array<uint16_t> stmatrix(const Array<uint32_t>& lanes, bool trans) {
  Array<uint16_t> matrix({8, 8});
  uint8_t* rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = reinterpret_cast<uint8_t*>(matrix.mutable_data() + 8 * i);
  stmatrix_m8n8(lanes.data(), trans, rows);
  return matrix;
}

}  // namespace

Element element_of(const std::string& name) {
  if (name == "f16") return Element::kF16;
  if (name == "bf16") return Element::kBF16;
  if (name == "tf32") return Element::kTF32;
  if (name == "e4m3") return Element::kE4M3;
  if (name == "e5m2") return Element::kE5M2;
  if (name == "s8") return Element::kS8;
  if (name == "u8") return Element::kU8;
  throw std::invalid_argument("element must be f16, bf16, tf32, e4m3, e5m2, s8 or u8, got '" + name + "'");
}

void bind_pieces(py::module_& parent) {
  using py::arg;
  py::module_ m = parent.def_submodule("pieces", "The emulator's parts one by one, for its tests.");
  m.def("decode", &decode_array, arg("format"), arg("bits"), "Stored bits (uint32) to float32, exactly.");
  m.def("encode", &encode_array<float>, arg("format"), arg("values"), arg("rounding") = "rn", arg("saturate") = false,
        arg("relu") = false, "float32 to stored bits (uint32).");
  m.def("encode_double", &encode_array<double>, arg("format"), arg("values"), arg("rounding") = "rn",
        arg("saturate") = false, arg("relu") = false, "float64 to stored bits (uint32).");
  m.def("fma", &fma_array, arg("format"), arg("a"), arg("b"), arg("c"), "a * b + c, rounded once to nearest even.");
  m.def("mma", &mma, arg("a_element"), arg("b_element"), arg("accumulator"), arg("k"), arg("a"), arg("b"), arg("c"),
        arg("satfinite") = false, arg("repeat") = 1, "mma.sync.m16n8k{k}; registers are (count, 32) of uint32.");
  m.def("ldmatrix", &ldmatrix, arg("matrix"), arg("trans") = false, "8x8 of b16 to one register of 32 lanes.");
  m.def("stmatrix", &stmatrix, arg("lanes"), arg("trans") = false, "One register of 32 lanes to 8x8 of b16.");
  bind_hopper(m);
}

}  // namespace fastres::emulator
