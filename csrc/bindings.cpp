// SPDX-License-Identifier: Apache-2.0
// The module pycl._C: raw pointers in, kernels chosen by dtype, the interpreter lock released while they run.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"

namespace py = pybind11;
using namespace pycl;

namespace {

using Address = uintptr_t;
using Addresses = std::array<Address, 3>;
using MatrixTuple = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, int>;

// torch_parallel_for of libtorch_cpu, a C symbol of its stable interface.
using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);
ParallelFor torch_parallel_for = nullptr;

bool use_thread_pool_of(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (!handle) return false;
  torch_parallel_for = reinterpret_cast<ParallelFor>(dlsym(handle, "torch_parallel_for"));
  return torch_parallel_for != nullptr;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Memory and threads of one call.
struct Call : Host {
  std::vector<std::unique_ptr<void, Free>> blocks;

  explicit Call(int n_threads) {
    threads = n_threads < 1 ? 1 : n_threads;
    owner = this;
    allocate = [](const Host& host, size_t bytes) {
      void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (!p) throw std::bad_alloc();
      static_cast<Call*>(host.owner)->blocks.emplace_back(p);
      return p;
    };
    run = [](const Host&, int tasks, void (*body)(void*, int), void* arg) {
      if (tasks == 1) return body(arg, 0);
      if (!torch_parallel_for) return run_threads(tasks, body, arg);
      struct Range {
        void (*body)(void*, int);
        void* arg;
      } range{body, arg};
      torch_parallel_for(
          0, tasks, 1,
          [](int64_t begin, int64_t end, void* context) {
            const Range& r = *static_cast<Range*>(context);
            for (int64_t task = begin; task < end; ++task) r.body(r.arg, int(task));
          },
          &range);
    };
  }

  static void run_threads(int tasks, void (*body)(void*, int), void* arg) {
    std::vector<std::thread> threads;
    for (int task = 1; task < tasks; ++task) threads.emplace_back(body, arg, task);
    body(arg, 0);
    for (std::thread& thread : threads) thread.join();
  }
};

struct PyProblem : Problem {
  bool halves;
  int threads;
  py::object keep_alive;

  const Kernels& kernels() const { return kernels_for(rows.z.dtype, halves); }
};

Matrix matrix(const MatrixTuple& z) {
  const auto& [data, n, d, row_stride, col_stride, dtype] = z;
  return {reinterpret_cast<const void*>(data), n, d, row_stride, col_stride, DType(dtype)};
}

Side side(const MatrixTuple& z, Address ids, Address views, Address bias) {
  return {matrix(z), reinterpret_cast<const int64_t*>(ids), reinterpret_cast<const int64_t*>(views),
          reinterpret_cast<const void*>(bias)};
}

// Labels: ids and views of the rows, then of the columns; 0 without.
PyProblem make_problem(const MatrixTuple& rows, const MatrixTuple& cols, const std::array<Address, 4>& labels,
                       Address row_bias, Address col_bias, bool symmetric, Address logit_scale, bool scale_per_row,
                       uint32_t denominator, uint32_t positives, bool has_self, int64_t offset, bool normalize,
                       bool halves, int threads) {
  PyProblem p;
  p.rows = side(rows, labels[0], labels[1], row_bias);
  p.cols = side(cols, labels[2], labels[3], col_bias);
  p.symmetric = symmetric;
  p.logit_scale = reinterpret_cast<const void*>(logit_scale);
  p.scale_per_row = scale_per_row;
  p.denominator = denominator;
  p.positives = positives;
  p.has_self = has_self;
  p.offset = offset;
  p.normalize = normalize;
  p.kept = nullptr;
  p.halves = halves;
  p.threads = threads;
  return p;
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

using Outputs = std::array<Address, 5>;  // in the order of Gradients

Gradients gradients(const Outputs& out) {
  return {pointer(out[0]), pointer(out[1]), pointer(out[2]), pointer(out[3]), pointer(out[4])};
}

// Whether labels of the two sides spread over more values than a 31-bit lane tells apart.
bool is_wide(Address rows, int64_t m, Address cols, int64_t n) {
  const auto *r = reinterpret_cast<const int64_t*>(rows), *c = reinterpret_cast<const int64_t*>(cols);
  int64_t low = r[0], high = r[0];
  for (int64_t i = 0; i < m; ++i) low = std::min(low, r[i]), high = std::max(high, r[i]);
  for (int64_t j = 0; j < n; ++j) low = std::min(low, c[j]), high = std::max(high, c[j]);
  return uint64_t(high) - uint64_t(low) > 0x7fffffffu;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of pycl; use pycl.engine.";
  m.def("use_thread_pool_of", &use_thread_pool_of);
  m.def("supported_isas", &supported_isas);
  m.def("select_isa", &select_isa);
  m.def("is_wide", &is_wide);

  using namespace py::literals;
  py::class_<PyProblem>(m, "Problem")
      .def(py::init(&make_problem), py::kw_only(), "rows"_a, "cols"_a, "labels"_a, "row_bias"_a, "col_bias"_a,
           "symmetric"_a, "logit_scale"_a, "scale_per_row"_a, "denominator"_a, "positives"_a, "has_self"_a, "offset"_a,
           "normalize"_a, "precision"_a, "threads"_a)
      .def("kept_bytes", [](const PyProblem& p) { return p.kernels().kept_bytes(p, p.threads); })
      .def("keep_at", [](PyProblem& p, Address kept) { p.kept = pointer(kept); })
      .def_readwrite("keep_alive", &PyProblem::keep_alive);

  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(
      "pair_stats",
      [](const PyProblem& p, Address rows, Address cols) {
        p.kernels().pair_stats(p, Call(p.threads), {pointer(rows), pointer(cols)});
      },
      unlocked);
  m.def(
      "pair_stats_backward",
      [](const PyProblem& p, Address rows, Address cols, const Addresses& d_rows, const Addresses& d_cols,
         const Outputs& out) {
        auto gradient = [](const Addresses& d) { return StatsGradient{pointer(d[0]), pointer(d[1]), pointer(d[2])}; };
        p.kernels().pair_stats_backward(p, Call(p.threads), {pointer(rows), pointer(cols)}, gradient(d_rows),
                                        gradient(d_cols), gradients(out));
      },
      unlocked);
  m.def(
      "pair_cross_entropy",
      [](const PyProblem& p, double lse, double pos_sum, bool both_sides, Address total, const Outputs& out) {
        p.kernels().pair_cross_entropy(p, Call(p.threads), {lse, pos_sum, both_sides}, pointer(total), gradients(out));
      },
      unlocked);
  m.def(
      "pair_sum", [](const PyProblem& p, Address out) { p.kernels().pair_sum(p, Call(p.threads), pointer(out)); },
      unlocked);
  m.def(
      "pair_sum_total",
      [](const PyProblem& p, double weight, Address total, const Outputs& out) {
        p.kernels().pair_sum_total(p, Call(p.threads), weight, pointer(total), gradients(out));
      },
      unlocked);
  m.def(
      "pair_sum_backward",
      [](const PyProblem& p, Address d_sum, const Outputs& out) {
        p.kernels().pair_sum_backward(p, Call(p.threads), pointer(d_sum), gradients(out));
      },
      unlocked);
  m.def(
      "pair_weighted_sum",
      [](const PyProblem& p, const MatrixTuple& values, Address out) {
        p.kernels().pair_weighted_sum(p, Call(p.threads), matrix(values), pointer(out));
      },
      unlocked);
  m.def(
      "sinkhorn_columns",
      [](const MatrixTuple& scores, double epsilon, Address sample_target, Address potential, Address out,
         int threads) {
        const Transport t{matrix(scores), epsilon, pointer(sample_target)};
        kernels_for(t.scores.dtype, false).sinkhorn_columns(t, Call(threads), pointer(potential), pointer(out));
      },
      unlocked);
  m.def(
      "sinkhorn_samples",
      [](const MatrixTuple& scores, double epsilon, Address potential, Address out, int threads) {
        const Transport t{matrix(scores), epsilon, nullptr};
        kernels_for(t.scores.dtype, false).sinkhorn_samples(t, Call(threads), pointer(potential), pointer(out));
      },
      unlocked);
  m.def(
      "sinkhorn_codes",
      [](const MatrixTuple& scores, double epsilon, Address sample_target, Address potential, int dtype, Address codes,
         Address u, int threads) {
        const Transport t{matrix(scores), epsilon, pointer(sample_target)};
        kernels_for(t.scores.dtype, false)
            .sinkhorn_codes(t, Call(threads), pointer(potential), DType(dtype), pointer(codes), pointer(u));
      },
      unlocked);
}
