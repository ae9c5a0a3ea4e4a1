// fastres._C: everything Python can call, on one page. Pointers cross as integers (tensor.data_ptr()), so no torch
// header is needed and one build serves every torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/bn_act.h"
#include "cpu/max_pool.h"
#include "cpu/memory.h"
#include "params.h"
#ifdef FASTRES_EMULATOR
#include "emulator/bind_pieces.h"
#include "emulator/emulator.h"
#endif

namespace py = pybind11;
using namespace fastres;

namespace {

// What was built, with what, and if CUDA was left out, why.
py::dict build_info() {
  py::dict info;
  std::vector<KernelName> kernels;
  info["compiler"] = FASTRES_COMPILER;
#ifdef FASTRES_CUDA
  info["cuda"] = FASTRES_CUDA_VERSION;
  append_conv_sm80_names(kernels);
#ifdef FASTRES_HOPPER
  append_conv_sm90_names(kernels);
#endif
  append_stem_names(kernels);
  append_bn_act_names(kernels);
  append_bn_merge_names(kernels);
  append_bn_pool_names(kernels);
#else
  info["cuda"] = py::none();
#endif
  info["cuda_missing"] = std::string(FASTRES_CUDA_WHY);
  info["archs"] = py::str(FASTRES_ARCHS).attr("split")();
  py::dict names;  // symbol -> stem of its PTX file
  for (const KernelName& kernel : kernels) names[py::str(kernel.symbol)] = kernel.ptx;
  info["kernels"] = names;
#ifdef FASTRES_EMULATOR
  info["emulator"] = true;
#else
  info["emulator"] = false;
#endif
  return info;
}

template <class T = void>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

// A pass on the CPU, of float64 or float32: `fill` sets what it takes beside its sizes.
template <class Fill>
void run_on_cpu(cpu::Pass pass, bool float64, int64_t rows, int64_t channels, int threads, const Fill& fill) {
  if (rows < 1 || channels < 1) throw std::invalid_argument("rows, channels: expected 1 or more");
  const auto run = [&](auto of) {
    of.rows = rows, of.channels = channels, of.threads = threads;
    fill(of);
    cpu::bn_act(pass, of);
  };
  const py::gil_scoped_release release;
  float64 ? run(cpu::BnAct<double>()) : run(cpu::BnAct<float>());
}

// An address as the type of the pointer that it is assigned to.
struct Address {
  uintptr_t value;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(value);
  }
};

using Addresses = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

// scale, shift, shortcut, scale2, shift2: of a ReLU's argument.
template <class T>
void set_argument(cpu::BnAct<T>& of, const Addresses& argument) {
  const auto [scale, shift, shortcut, scale2, shift2] = argument;
  of.scale = Address{scale}, of.shift = Address{shift};
  of.shortcut = Address{shortcut}, of.scale2 = Address{scale2}, of.shift2 = Address{shift2};
}

void bind_cpu(py::module_& m) {
  m.def("cpu_keep_freed_memory", cpu::keep_freed_memory,
        "Has glibc's malloc keep what a training step frees for the next one; False where that is not ours to say.");
  m.def(
      "cpu_vectors",
      [](bool float64, int64_t channels, uintptr_t statistics, double values, uintptr_t gamma, uintptr_t beta,
         double eps, uintptr_t vectors) {
        const auto run = [&](auto* out) {
          using T = std::remove_pointer_t<decltype(out)>;
          cpu::bn_vectors<T>(channels, Address{statistics}, values, Address{gamma}, Address{beta}, eps, out);
        };
        float64 ? run(address<double>(vectors)) : run(address<float>(vectors));
      },
      "vectors, [4, channels]: mean, invstd, scale and shift of statistics; gamma and beta may be 0, for none.");
  m.def(
      "cpu_track",
      [](bool float64, int64_t channels, uintptr_t statistics, double weight, uintptr_t mean, uintptr_t var) {
        const auto run = [&](auto* of) {
          using T = std::remove_pointer_t<decltype(of)>;
          cpu::bn_track<T>(channels, Address{statistics}, weight, of, Address{var});
        };
        float64 ? run(address<double>(mean)) : run(address<float>(mean));
      },
      "Moves running means and variances towards those of statistics by weight of the way.");
  m.def(
      "cpu_max_pool",
      [](bool float64, int threads, const std::array<int64_t, 4>& shape, std::tuple<int64_t, int64_t> windows,
         const std::array<int64_t, 3>& pool, uintptr_t y, uintptr_t scale, uintptr_t shift, bool relu,
         uintptr_t gradient, uintptr_t out) {
        if (pool[0] < 1 || pool[1] < 1 || pool[2] < 0 || 2 * pool[2] > pool[0]) {
          throw std::invalid_argument(
              "pool: expected kernel and stride of 1 or more, and padding of half a kernel or less");
        }
        const auto run = [&](auto of) {
          std::tie(of.n, of.channels, of.h, of.w) = std::tie(shape[0], shape[1], shape[2], shape[3]);
          std::tie(of.p, of.q) = windows;
          std::tie(of.kernel, of.stride, of.padding) = std::tie(pool[0], pool[1], pool[2]);
          of.threads = threads, of.relu = relu;
          of.y = Address{y}, of.scale = Address{scale}, of.shift = Address{shift};
          of.gradient = Address{gradient}, of.out = Address{out};
          cpu::max_pool(of);
        };
        const py::gil_scoped_release release;
        float64 ? run(cpu::MaxPool<double>()) : run(cpu::MaxPool<float>());
      },
      "out = max over windows of act(y * scale + shift), or where gradient, of windows, is given the gradient of "
      "act(..).");
  m.def(
      "cpu_apply",
      [](bool float64, int64_t rows, int64_t channels, int threads, uintptr_t y, const Addresses& argument, bool relu,
         uintptr_t out) {
        run_on_cpu(cpu::Pass::kApply, float64, rows, channels, threads, [&](auto& of) {
          set_argument(of, argument);
          of.y = Address{y}, of.out = Address{out}, of.relu = relu;
        });
      },
      "out = act(y * scale + shift [+ shortcut [* scale2 + shift2]]); argument: those five addresses, 0 for none.");
  m.def(
      "cpu_statistics",
      [](bool float64, int64_t rows, int64_t channels, int threads, uintptr_t y, uintptr_t statistics) {
        run_on_cpu(cpu::Pass::kStatistics, float64, rows, channels, threads,
                   [&](auto& of) { of.y = Address{y}, of.result = Address{statistics}; });
      },
      "statistics, [channels, 3]: count, mean and m2 of y.");
  m.def(
      "cpu_sums",
      [](bool float64, int64_t rows, int64_t channels, int threads, uintptr_t y, uintptr_t gradient, uintptr_t mean,
         const Addresses& argument, bool relu, uintptr_t masked, uintptr_t sums) {
        run_on_cpu(cpu::Pass::kSums, float64, rows, channels, threads, [&](auto& of) {
          set_argument(of, argument);
          of.y = Address{y}, of.gradient = Address{gradient}, of.mean = Address{mean}, of.relu = relu;
          of.masked = Address{masked}, of.result = Address{sums};
        });
      },
      "sums, [channels, 2]: of g and g * (y - mean), g being gradient where the ReLU passes it; masked = g.");
  m.def(
      "cpu_backward",
      [](bool float64, int64_t rows, int64_t channels, int threads, uintptr_t y, uintptr_t gradient, uintptr_t mean,
         uintptr_t invstd, uintptr_t scale, uintptr_t sums, double values, const Addresses& argument, bool relu,
         uintptr_t out) {
        run_on_cpu(cpu::Pass::kBackward, float64, rows, channels, threads, [&](auto& of) {
          set_argument(of, argument);
          of.y = Address{y}, of.gradient = Address{gradient}, of.mean = Address{mean}, of.relu = relu;
          of.invstd = Address{invstd}, of.gradient_scale = Address{scale};
          of.sums = Address{sums}, of.values = values, of.out = Address{out};
        });
      },
      "out = scale * (g - sum_g / values - (y - mean) * invstd^2 * sum_gy / values); g and sums as cpu_sums has them.");
}

#ifdef FASTRES_CUDA

using Pair = std::tuple<int, int>;
using Triple = std::tuple<int, int, int>;
using Quad = std::tuple<int, int, int, int>;

py::tuple triple(const Dim3& size) {
  return py::make_tuple(size.x, size.y, size.z);
}

void bind_tensor_map(py::module_& m) {
  py::class_<TensorMapSpec>(m, "TensorMapSpec",
                            "A TMA descriptor to be encoded into a plan's params, dims innermost first.")
      .def_readonly("offset", &TensorMapSpec::offset)
      .def_property_readonly("type",
                             [](const TensorMapSpec& map) { return map.dtype == DType::kBf16 ? "bf16" : "f16"; })
      .def_property_readonly("address",
                             [](const TensorMapSpec& map) { return reinterpret_cast<uintptr_t>(map.address); })
      .def_readonly("sizes", &TensorMapSpec::sizes)
      .def_readonly("strides", &TensorMapSpec::strides)
      .def_readonly("element_strides", &TensorMapSpec::element_strides)
      .def_readonly("box", &TensorMapSpec::box)
      .def_readonly("lower", &TensorMapSpec::lower)
      .def_readonly("upper", &TensorMapSpec::upper);
}

void bind_plan(py::module_& m) {
  py::enum_<DType>(m, "DType").value("bf16", DType::kBf16).value("fp16", DType::kFp16).value("tf32", DType::kTf32);

  py::class_<Plan>(m, "Plan", "One kernel launch, worked out on the host: what a GPU and the emulator are both given.")
      .def_readonly("symbol", &Plan::symbol)
      .def_readonly("ptx", &Plan::ptx)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_readonly("maps", &Plan::maps)
      .def_readonly("overlap", &Plan::overlap)
      .def_property_readonly("grid", [](const Plan& plan) { return triple(plan.grid); })
      .def_property_readonly("block", [](const Plan& plan) { return triple(plan.block); })
      .def_property_readonly("cluster", [](const Plan& plan) { return triple(plan.cluster); })
      .def_property_readonly("params", [](const Plan& plan) {
        return py::bytes(reinterpret_cast<const char*>(plan.params.data()), plan.params.size());
      });
  m.def("launch", &launch, py::arg("plan"), py::arg("stream"),
        "Queues the plan on a CUDA stream of the current device. Raises RuntimeError with CUDA's own words.");
}

ConvTile tile_of(const Quad& tile) {
  const auto [m, n, splits, cluster] = tile;
  return {m, n, splits, cluster};
}

py::tuple tuple_of(const ConvTile& tile) {
  return py::make_tuple(tile.m, tile.n, tile.splits, tile.cluster);
}

void bind_conv(py::module_& m) {
  py::class_<ConvOperand>(m, "ConvOperand",
                          "x [N, H, W, C], weight [K, R, S, C / groups] with padded rows, bias [K], and geometry.")
      .def(py::init([](uintptr_t x, uintptr_t weight, uintptr_t bias, Triple image, Pair kernel, Pair stride,
                       Pair padding, Pair dilation, int weight_pitch) {
             ConvOperand o{};
             o.x = address(x), o.weight = address(weight), o.bias = address<float>(bias);
             std::tie(o.h, o.w, o.c) = image;
             std::tie(o.r, o.s) = kernel;
             std::tie(o.stride_h, o.stride_w) = stride;
             std::tie(o.pad_h, o.pad_w) = padding;
             std::tie(o.dilation_h, o.dilation_w) = dilation;
             o.weight_pitch = weight_pitch;
             return o;
           }),
           py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("image"), py::arg("kernel"), py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("weight_pitch"));

  py::class_<ConvParams>(m, "ConvProblem", "act(conv(operand 0) [+ conv(operand 1)] [+ residual]).")
      .def(py::init([](const std::vector<ConvOperand>& operands, Quad output, int groups, uintptr_t residual,
                       uintptr_t y, bool relu, uintptr_t input_scale, uintptr_t input_shift, uintptr_t moments) {
             if (operands.empty() || operands.size() > 2) throw std::invalid_argument("operands: expected one or two");
             ConvParams params{};
             std::copy(operands.begin(), operands.end(), params.operand);
             params.operands = static_cast<int>(operands.size());
             std::tie(params.n, params.p, params.q, params.k) = output;
             params.groups = groups;
             params.residual = address(residual), params.y = address(y);
             params.relu = relu;
             params.input_scale = address<float>(input_scale), params.input_shift = address<float>(input_shift);
             params.moments = address(moments);
             return params;
           }),
           py::arg("operands"), py::arg("output"), py::arg("groups"), py::arg("residual"), py::arg("y"),
           py::arg("relu"), py::arg("input_scale") = 0, py::arg("input_shift") = 0, py::arg("moments") = 0)
      .def_property(
          "moments", [](const ConvParams& params) { return reinterpret_cast<uintptr_t>(params.moments); },
          [](ConvParams& params, uintptr_t value) { params.moments = address(value); },
          "Where each tile's statistics go, [tiles of rows, K, 3]; known once a tile is chosen.");

  m.def(
      "conv_sm80_tile",
      [](DType dtype, const ConvParams& params, int sms, const Quad& tile) {
        ConvTile chosen = tile_of(tile);
        const size_t workspace = conv_sm80_workspace(dtype, params, sms, chosen);
        return py::make_tuple(tuple_of(chosen), workspace);
      },
      py::arg("dtype"), py::arg("problem"), py::arg("sms"), py::arg("tile") = Quad{},
      "((m, n, splits, cluster), workspace in floats) for a GPU of `sms` multiprocessors; what is 0 is chosen.");
  m.def(
      "conv_sm80_plan",
      [](DType dtype, ConvParams params, int, const Quad& tile, uintptr_t workspace) {
        params.partial = address<float>(workspace);
        return plan_conv_sm80(dtype, params, tile_of(tile));
      },
      py::arg("dtype"), py::arg("problem"), py::arg("sms"), py::arg("tile"), py::arg("workspace"),
      "The launches of a convolution, in order. Raises ValueError for what would corrupt memory.");
#ifdef FASTRES_HOPPER
  m.def("conv_sm90_obstacle", &conv_sm90_obstacle, py::arg("dtype"), py::arg("problem"),
        "Why conv_sm90 cannot run the problem, or ''.");
  m.def(
      "conv_sm90_tile",
      [](DType dtype, const ConvParams& params, int sms, const Quad& tile) {
        ConvTile chosen = tile_of(tile);
        const size_t workspace = conv_sm90_workspace(dtype, params, sms, chosen);
        return py::make_tuple(tuple_of(chosen), workspace);
      },
      py::arg("dtype"), py::arg("problem"), py::arg("sms"), py::arg("tile") = Quad{}, "As conv_sm80_tile.");
  m.def(
      "conv_sm90_plan",
      [](DType dtype, ConvParams params, int sms, const Quad& tile, uintptr_t workspace) {
        params.partial = address<float>(workspace);
        return plan_conv_sm90(dtype, params, sms, tile_of(tile));
      },
      py::arg("dtype"), py::arg("problem"), py::arg("sms"), py::arg("tile"), py::arg("workspace"),
      "As conv_sm80_plan; `sms` is how many blocks the kernel has at a time.");
  m.def(
      "conv_sm90_moment_rows",
      [](DType dtype, const Quad& tile) { return conv_sm90_moment_rows(dtype, tile_of(tile)); }, py::arg("dtype"),
      py::arg("tile"), "Rows of y that an entry of a problem's moments is about, by the tile that was chosen.");
#endif
}

void bind_stem(py::module_& m) {
  m.def(
      "stem_plan",
      [](DType dtype, bool uint8_input, uintptr_t x, Quad shape, std::array<int64_t, 4> strides, uintptr_t weight,
         uintptr_t bias, uintptr_t y, Pair conv, Pair pooled, int filters, std::array<float, 4> scale,
         std::array<float, 4> shift) {
        StemParams params{};
        params.x = address(x), params.weight = address(weight), params.bias = address<float>(bias);
        params.y = address(y);
        std::tie(params.n, params.c, params.h, params.w) = shape;
        params.stride_n = strides[0], params.stride_c = strides[1];
        params.stride_h = strides[2], params.stride_w = strides[3];
        std::tie(params.p, params.q) = conv;
        std::tie(params.pooled_p, params.pooled_q) = pooled;
        params.k = filters;
        std::copy(scale.begin(), scale.end(), params.scale);
        std::copy(shift.begin(), shift.end(), params.shift);
        return plan_stem(dtype, uint8_input, params);
      },
      py::arg("dtype"), py::arg("uint8_input"), py::arg("x"), py::arg("shape"), py::arg("strides"), py::arg("weight"),
      py::arg("bias"), py::arg("y"), py::arg("conv"), py::arg("pooled"), py::arg("filters"), py::arg("scale"),
      py::arg("shift"),
      "The launch of max_pool(relu(conv7x7/2(x * scale + shift) + bias)); shape and strides are NCHW.");
}

void bind_bn_act(py::module_& m) {
  py::enum_<BnActPass>(m, "BnActPass")
      .value("statistics", BnActPass::kStatistics)
      .value("apply", BnActPass::kApply)
      .value("sums", BnActPass::kSums)
      .value("backward", BnActPass::kBackward);
  m.def("bn_act_slabs", &bn_act_slabs, py::arg("dtype"), py::arg("rows"), py::arg("channels"),
        "The slabs of rows that `partial` has room for.");
  m.def(
      "bn_act_plan",
      [](DType dtype, BnActPass pass, int64_t rows, int channels, bool relu, uintptr_t x, uintptr_t residual,
         uintptr_t gradient, uintptr_t y, uintptr_t gradient_residual, uintptr_t scale, uintptr_t shift,
         uintptr_t scale2, uintptr_t shift2, uintptr_t mean, uintptr_t invstd, uintptr_t gradient_scale, int64_t values,
         uintptr_t partial, uintptr_t result) {
        BnActParams params{};
        params.rows = rows, params.channels = channels, params.relu = relu;
        params.x = address(x), params.residual = address(residual), params.gradient = address(gradient);
        params.y = address(y), params.gradient_residual = address(gradient_residual);
        params.scale = address<float>(scale), params.shift = address<float>(shift);
        params.scale2 = address<float>(scale2), params.shift2 = address<float>(shift2);
        params.mean = address<float>(mean), params.invstd = address<float>(invstd);
        params.gradient_scale = address<float>(gradient_scale), params.values = values;
        params.partial = address(partial), params.result = address(result);
        return plan_bn_act(dtype, pass, params);
      },
      py::arg("dtype"), py::arg("pass_"), py::arg("rows"), py::arg("channels"), py::kw_only(), py::arg("relu") = false,
      py::arg("x"), py::arg("residual") = 0, py::arg("gradient") = 0, py::arg("y") = 0,
      py::arg("gradient_residual") = 0, py::arg("scale") = 0, py::arg("shift") = 0, py::arg("scale2") = 0,
      py::arg("shift2") = 0, py::arg("mean") = 0, py::arg("invstd") = 0, py::arg("gradient_scale") = 0,
      py::arg("values") = 0, py::arg("partial") = 0, py::arg("result") = 0,
      "The launches of one pass, in order. Raises ValueError for what would corrupt memory.");
  m.def(
      "bn_merge_plan",
      [](BnActPass pass, int slabs, int channels, uintptr_t partial, uintptr_t result) {
        return plan_bn_merge(pass, {address(partial), address(result), slabs, channels, false});
      },
      py::arg("pass_"), py::arg("slabs"), py::arg("channels"), py::arg("partial"), py::arg("result"),
      "The launch that merges the partial results of a pass that reduces: [slabs, channels, 3 or 2].");
  m.def(
      "bn_finalize_plan",
      [](int channels, int64_t values, float eps, float momentum, uintptr_t statistics, uintptr_t gamma, uintptr_t beta,
         uintptr_t running_mean, uintptr_t running_var, uintptr_t vectors) {
        return plan_bn_finalize({address(statistics), address<float>(gamma), address<float>(beta),
                                 address<float>(running_mean), address<float>(running_var), address<float>(vectors),
                                 channels, static_cast<float>(values), eps, momentum});
      },
      py::arg("channels"), py::arg("values"), py::arg("eps"), py::arg("momentum"), py::kw_only(), py::arg("statistics"),
      py::arg("gamma") = 0, py::arg("beta") = 0, py::arg("running_mean") = 0, py::arg("running_var") = 0,
      py::arg("vectors"),
      "The launch that makes mean, invstd, scale and shift, [4, channels], of statistics; updates the running ones.");
}

void bind_bn_pool(py::module_& m) {
  py::enum_<BnPoolPass>(m, "BnPoolPass")
      .value("pool", BnPoolPass::kPool)
      .value("taps", BnPoolPass::kTaps)
      .value("gather", BnPoolPass::kGather);
  m.def(
      "bn_pool_plan",
      [](DType dtype, BnPoolPass pass, Quad shape, Pair pooled, Triple window, bool relu, uintptr_t x, uintptr_t scale,
         uintptr_t shift, uintptr_t gradient, uintptr_t taps, uintptr_t y) {
        BnPoolParams params{};
        std::tie(params.n, params.c, params.h, params.w) = shape;
        std::tie(params.p, params.q) = pooled;
        std::tie(params.kernel, params.stride, params.padding) = window;
        params.relu = relu;
        params.x = address(x), params.gradient = address(gradient);
        params.scale = address<float>(scale), params.shift = address<float>(shift);
        params.taps = address(taps), params.y = address(y);
        return plan_bn_pool(dtype, pass, params);
      },
      py::arg("dtype"), py::arg("pass_"), py::arg("shape"), py::arg("pooled"), py::arg("window"), py::kw_only(),
      py::arg("relu") = false, py::arg("x") = 0, py::arg("scale") = 0, py::arg("shift") = 0, py::arg("gradient") = 0,
      py::arg("taps") = 0, py::arg("y") = 0,
      "The launch of one pass; shape is NCHW, window (kernel, stride, padding). ValueError for what would corrupt "
      "memory.");
}

#endif  // FASTRES_CUDA

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native code of fastres: CUDA kernel launchers, passes of a training step on the CPU, and the PTX emulator.";
  m.def("build_info", &build_info, "What was built: compiler, cuda, cuda_missing, archs, kernels, emulator.");
  bind_cpu(m);
#ifdef FASTRES_EMULATOR
  fastres::emulator::bind_emulator(m);
  fastres::emulator::bind_pieces(m);
#endif
#ifdef FASTRES_CUDA
  bind_tensor_map(m);
  bind_plan(m);
  bind_conv(m);
  bind_stem(m);
  bind_bn_act(m);
  bind_bn_pool(m);
#endif
}
