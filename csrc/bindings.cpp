// SPDX-License-Identifier: Apache-2.0
// The module pycl._C: raw pointers in, kernels chosen by dtype, the interpreter lock released while they run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <exception>
#include <optional>
#include <vector>

#include "arguments.h"
#include "call.h"
#include "cpu/dispatch.h"

namespace py = pybind11;
using namespace pycl;

std::exception_ptr pycl::raised_by_signals() {
  const py::gil_scoped_acquire locked;
  return PyErr_CheckSignals() ? std::make_exception_ptr(py::error_already_set()) : nullptr;
}

namespace {

struct PyProblem : Problem {
  bool halves;
  int threads;
  py::object keep_alive;

  const Kernels& kernels() const { return kernels_for(rows.z.dtype, halves, rows.z.n * cols.z.n); }
};

// The memory of a result, which waits for the next one when the last tensor on it is gone.
struct Memory {
  BlockCache::Block block;
  ssize_t bytes;

  explicit Memory(ssize_t size) : bytes(size) {
    demand(size >= 1, "size must be at least 1, got ", int64_t(size));
    block = block_cache().take(size_t(size));
    if (!block.memory) throw std::bad_alloc();
  }
  Memory(const Memory&) = delete;
  ~Memory() { block_cache().give_back(block); }
};

Side side(const char* name, const MatrixTuple& z, Address ids, Address views, int64_t n_views, Address bias) {
  const Matrix m = matrix(name, z);
  demand(n_views >= 1 && m.n % n_views == 0, "n_views must divide the points of ", name, ", got ", n_views, " of ",
         m.n);
  return {m, reinterpret_cast<const int64_t*>(ids), reinterpret_cast<const int64_t*>(views), m.n / n_views,
          reinterpret_cast<const void*>(bias)};
}

// Labels: ids and views of the rows, then of the columns; 0 without, and then each side has n_views views.
PyProblem make_problem(const MatrixTuple& rows, const MatrixTuple& cols, const std::array<Address, 4>& labels,
                       int64_t n_views, Address row_bias, Address col_bias, bool symmetric, Address logit_scale,
                       bool scale_per_row, uint32_t pairs, uint32_t positives, bool has_self, int64_t offset,
                       bool normalize, bool halves, int threads) {
  PyProblem p;
  p.rows = side("rows", rows, labels[0], labels[1], n_views, row_bias);
  p.cols = side("cols", cols, labels[2], labels[3], n_views, col_bias);
  check_sides(p.rows, p.cols, symmetric);
  p.symmetric = symmetric;
  p.logit_scale = required("logit_scale", logit_scale);
  p.scale_per_row = scale_per_row;
  p.pairs = pair_set("pairs", pairs);
  p.positives = pair_set("positives", positives);
  p.has_self = has_self;
  demand(-kLargestOffset <= offset && offset <= kLargestOffset, "offset is out of range: ", offset);
  p.offset = offset;
  p.normalize = normalize;
  p.modifiers.count = 0;
  p.residuals = nullptr;
  p.residual_bytes = 0;
  p.halves = halves;
  p.threads = thread_count(threads);
  return p;
}

// Data: codes of rows and columns, their values, and what is shared; 0 where the modifiers have none.
void modify(PyProblem& p, const std::vector<ModifierTuple>& given, const std::array<Address, 5>& data) {
  Modifiers all{};
  demand(given.size() <= size_t(kMostModifiers), "modifiers are at most ", kMostModifiers, ", got ",
         int64_t(given.size()));
  std::array<int64_t, 4> width{};
  for (const ModifierTuple& one : given) {
    Modifier& m = all.list[all.count++] = modifier(one);
    m.code = width[0], m.row_value = width[1], m.col_value = width[2], m.shared = width[3];
    const auto own = widths(m.kind, m.sizes[0], m.sizes[1]);
    for (size_t k = 0; k < own.size(); ++k) width[k] += own[k];
  }
  all.n_codes = width[0], all.row_width = width[1], all.col_width = width[2], all.n_shared = width[3];
  auto of = [&](const char* name, bool needed, Address address) { return needed ? required(name, address) : nullptr; };
  all.row_codes = static_cast<const int64_t*>(of("row_codes", all.n_codes, data[0]));
  all.col_codes = static_cast<const int64_t*>(of("col_codes", all.n_codes, data[1]));
  all.row_values = of("row_values", all.row_width, data[2]);
  all.col_values = of("col_values", all.col_width, data[3]);
  all.shared = of("shared", all.n_shared, data[4]);
  for (int k = 0; k < all.count; ++k) {
    const Modifier& m = all.list[k];
    if (m.kind != ModifierKind::kLabelTable) continue;
    check_labels("row_labels", all.row_codes, p.rows.z.n, all.n_codes, m.code, m.sizes[0]);
    check_labels("col_labels", all.col_codes, p.cols.z.n, all.n_codes, m.code, m.sizes[1]);
  }
  p.modifiers = all;
}

// Whether labels of the two sides spread over more values than a 31-bit lane tells apart.
bool is_wide(Address rows, int64_t m, Address cols, int64_t n) {
  demand(rows && m >= 1 && (cols || n == 0) && n >= 0, "labels must be at an address, and one at least");
  const auto *r = reinterpret_cast<const int64_t*>(rows), *c = reinterpret_cast<const int64_t*>(cols);
  int64_t low = r[0], high = r[0];
  for (int64_t i = 0; i < m; ++i) low = std::min(low, r[i]), high = std::max(high, r[i]);
  for (int64_t j = 0; j < n; ++j) low = std::min(low, c[j]), high = std::max(high, c[j]);
  return uint64_t(high) - uint64_t(low) > 0x7fffffffu;
}

StatsGradient stats_gradient(const Addresses& d) { return {pointer(d[0]), pointer(d[1]), pointer(d[2])}; }

// An argument that is what it says: pybind11 would take numpy.float32(3.7) for the integer 3.
py::arg exact(const char* name) { return py::arg(name).noconvert(); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of pycl; use pycl.engine.";
  m.def("use_thread_pool_of", &use_thread_pool_of);
  m.def("supported_isas", &supported_isas);
  m.def("select_isa", &select_isa);
  m.def("is_wide", &is_wide, exact("rows"), exact("m"), exact("cols"), exact("n"));
  py::class_<Memory>(m, "Memory", py::buffer_protocol())
      .def(py::init<ssize_t>(), exact("size"))
      .def_buffer(
          [](Memory& memory) { return py::buffer_info(static_cast<uint8_t*>(memory.block.memory), memory.bytes); });

  py::class_<PyProblem>(m, "Problem")
      .def(py::init(&make_problem), exact("rows"), exact("cols"), exact("labels"), exact("n_views"), exact("row_bias"),
           exact("col_bias"), exact("symmetric"), exact("logit_scale"), exact("scale_per_row"), exact("pairs"),
           exact("positives"), exact("has_self"), exact("offset"), exact("normalize"), exact("halves"),
           exact("threads"))
      .def("modify", &modify, exact("modifiers"), exact("data"))
      .def(
          "residual_bytes",
          [](const PyProblem& p, size_t limit) { return p.kernels().residual_bytes(p, Call(p.threads), limit); },
          exact("limit"))
      .def(
          "residuals_at",
          [](PyProblem& p, Address residuals, size_t bytes) {
            p.residuals = required("residuals", residuals);
            demand(bytes >= sizeof(ResidualHeader), "bytes must have room for a header, got ", int64_t(bytes));
            p.residual_bytes = bytes;
          },
          exact("residuals"), exact("bytes"))
      .def_readwrite("keep_alive", &PyProblem::keep_alive);

  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(
      "pair_stats",
      [](const PyProblem& p, Address rows, Address cols, const std::vector<double>& slopes) {
        const Stats out{required("rows", rows), pointer(cols)};
        const Slopes each = slopes_of(slopes);
        run_kernel(p.threads, [&](const ExecutionContext& host) { p.kernels().pair_stats(p, host, each, out); });
      },
      unlocked, py::arg("problem"), exact("rows"), exact("cols"), exact("slopes"));
  m.def(
      "pair_stats_backward",
      [](const PyProblem& p, Address rows, Address cols, const Addresses& d_rows, const Addresses& d_cols,
         const Outputs& out, const std::vector<double>& slopes) {
        const Stats stats{required("rows", rows), pointer(cols)};
        const Slopes each = slopes_of(slopes);
        const Gradients wanted = gradients(p, out);
        run_kernel(p.threads, [&](const ExecutionContext& host) {
          p.kernels().pair_stats_backward(p, host, each, stats, stats_gradient(d_rows), stats_gradient(d_cols), wanted);
        });
      },
      unlocked, py::arg("problem"), exact("rows"), exact("cols"), exact("d_rows"), exact("d_cols"), exact("out"),
      exact("slopes"));
  m.def(
      "prefix_stats",
      [](const PyProblem& p, const std::vector<int64_t>& ends, Address row_factor, Address col_factor, Address rows,
         Address cols) {
        const Stats out{required("rows", rows), pointer(cols)};
        const Prefixes prefixes = prefixes_of(p, ends, row_factor, col_factor);
        run_kernel(p.threads, [&](const ExecutionContext& host) { p.kernels().prefix_stats(p, host, prefixes, out); });
      },
      unlocked, py::arg("problem"), exact("ends"), exact("row_factor"), exact("col_factor"), exact("rows"),
      exact("cols"));
  m.def(
      "prefix_stats_backward",
      [](const PyProblem& p, const std::vector<int64_t>& ends, Address row_factor, Address col_factor, Address rows,
         Address cols, const Addresses& d_rows, const Addresses& d_cols, const std::array<Address, 4>& out) {
        const Stats stats{required("rows", rows), pointer(cols)};
        const Prefixes prefixes = prefixes_of(p, ends, row_factor, col_factor);
        const PrefixGradients wanted = prefix_gradients(p, out);
        run_kernel(p.threads, [&](const ExecutionContext& host) {
          p.kernels().prefix_stats_backward(p, host, prefixes, stats, stats_gradient(d_rows), stats_gradient(d_cols),
                                            wanted);
        });
      },
      unlocked, py::arg("problem"), exact("ends"), exact("row_factor"), exact("col_factor"), exact("rows"),
      exact("cols"), exact("d_rows"), exact("d_cols"), exact("out"));
  m.def(
      "pair_cross_entropy_fused",
      [](const PyProblem& p, double lse, double pos_sum, bool both_sides, Address total, const Outputs& out) {
        void* const sum = required("total", total);
        const Gradients wanted = gradients(p, out);
        run_kernel(p.threads, [&](const ExecutionContext& host) {
          p.kernels().pair_cross_entropy_fused(p, host, {lse, pos_sum, both_sides}, sum, wanted);
        });
      },
      unlocked, py::arg("problem"), py::arg("lse"), py::arg("pos_sum"), exact("both_sides"), exact("total"),
      exact("out"));
  m.def(
      "pair_sum",
      [](const PyProblem& p, int map, Address positive_weight, Address sums, Address counts) {
        const Terms terms = terms_of(map, positive_weight);
        const Sums out{required("sums", sums), pointer(counts)};
        run_kernel(p.threads, [&](const ExecutionContext& host) { p.kernels().pair_sum(p, host, terms, out); });
      },
      unlocked, py::arg("problem"), exact("map"), exact("positive_weight"), exact("sums"), exact("counts"));
  m.def(
      "pair_sum_fused",
      [](const PyProblem& p, int map, Address positive_weight, double weight, Address total, const Outputs& out) {
        const Terms terms = terms_of(map, positive_weight);
        void* const sum = required("total", total);
        const Gradients wanted = gradients(p, out);
        run_kernel(p.threads, [&](const ExecutionContext& host) {
          p.kernels().pair_sum_fused(p, host, terms, weight, sum, wanted);
        });
      },
      unlocked, py::arg("problem"), exact("map"), exact("positive_weight"), py::arg("weight"), exact("total"),
      exact("out"));
  m.def(
      "pair_sum_backward",
      [](const PyProblem& p, int map, Address positive_weight, Address d_sum, const Outputs& out) {
        const Terms terms = terms_of(map, positive_weight);
        void* const d = required("d_sum", d_sum);
        const Gradients wanted = gradients(p, out);
        run_kernel(p.threads,
                   [&](const ExecutionContext& host) { p.kernels().pair_sum_backward(p, host, terms, d, wanted); });
      },
      unlocked, py::arg("problem"), exact("map"), exact("positive_weight"), exact("d_sum"), exact("out"));
  m.def(
      "pair_average",
      [](const PyProblem& p, const std::optional<MatrixTuple>& values, Address means, Address lse) {
        const Matrix v = values ? matrix("values", *values) : Matrix{};
        demand(!values || v.n == p.cols.z.n, "values must have a row for each column, got ", v.n);
        const Average out{required("means", means), required("lse", lse)};
        run_kernel(p.threads, [&](const ExecutionContext& host) {
          p.kernels().pair_average(p, host, values ? &v : nullptr, out);
        });
      },
      unlocked, py::arg("problem"), exact("values"), exact("means"), exact("lse"));
  m.def(
      "pair_average_backward",
      [](const PyProblem& p, const MatrixTuple& values, const MatrixTuple& d_out, Address along, Address d_values,
         const Outputs& out) {
        const Matrix v = matrix("values", values), g = matrix("d_out", d_out);
        demand(v.n == p.cols.z.n, "values must have a row for each column, got ", v.n);
        demand(g.n == p.rows.z.n && g.d == v.d, "d_out must have a row for each row and the width of the values, got ",
               g.n, " and ", g.d);
        const void* const from = required("along", along);
        const Gradients wanted = gradients(p, out);
        run_kernel(p.threads, [&](const ExecutionContext& host) {
          p.kernels().pair_average_backward(p, host, v, g, from, pointer(d_values), wanted);
        });
      },
      unlocked, py::arg("problem"), exact("values"), exact("d_out"), exact("along"), exact("d_values"), exact("out"));
  m.def(
      "pair_extremes",
      [](const PyProblem& p, Address values, Address index, Address col_values, Address col_index) {
        const Extremes rows{required("values", values), static_cast<int64_t*>(required("index", index))};
        demand(!col_values == !col_index, "col_values and col_index must be addresses, both or neither");
        const Extremes cols{pointer(col_values), static_cast<int64_t*>(pointer(col_index))};
        run_kernel(p.threads, [&](const ExecutionContext& host) { p.kernels().pair_extremes(p, host, rows, cols); });
      },
      unlocked, py::arg("problem"), exact("values"), exact("index"), exact("col_values"), exact("col_index"));
  m.def(
      "sinkhorn",
      [](const MatrixTuple& scores, double epsilon, Address sample_target, int64_t iterations, Address prototype_target,
         int dtype, Address codes, Address u, Address v, int threads) {
        const SinkhornProblem t = sinkhorn_problem(scores, epsilon, sample_target);
        demand(iterations >= 1, "iterations must be at least 1, got ", iterations);
        const DType code = code_dtype(t, dtype);
        const void* const target = required("prototype_target", prototype_target);
        void *const to = required("codes", codes), *const samples = required("u", u),
                    *const potential = required("v", v);
        run_kernel(thread_count(threads), [&](const ExecutionContext& host) {
          kernels_for(t.scores.dtype, false).sinkhorn(t, host, iterations, target, code, to, samples, potential);
        });
      },
      unlocked, exact("scores"), py::arg("epsilon"), exact("sample_target"), exact("iterations"),
      exact("prototype_target"), exact("dtype"), exact("codes"), exact("u"), exact("v"), exact("threads"));
  m.def(
      "sinkhorn_columns",
      [](const MatrixTuple& scores, double epsilon, Address sample_target, Address potential, Address out,
         int threads) {
        const SinkhornProblem t = sinkhorn_problem(scores, epsilon, sample_target);
        void* const lse = required("out", out);
        run_kernel(thread_count(threads), [&](const ExecutionContext& host) {
          kernels_for(t.scores.dtype, false).sinkhorn_columns(t, host, pointer(potential), lse);
        });
      },
      unlocked, exact("scores"), py::arg("epsilon"), exact("sample_target"), exact("potential"), exact("out"),
      exact("threads"));
  m.def(
      "sinkhorn_samples",
      [](const MatrixTuple& scores, double epsilon, Address potential, Address out, int threads) {
        const SinkhornProblem t = sinkhorn_problem(scores, epsilon, 0);
        const void* const v = required("potential", potential);
        void* const lse = required("out", out);
        run_kernel(thread_count(threads), [&](const ExecutionContext& host) {
          kernels_for(t.scores.dtype, false).sinkhorn_samples(t, host, v, lse);
        });
      },
      unlocked, exact("scores"), py::arg("epsilon"), exact("potential"), exact("out"), exact("threads"));
  m.def(
      "sinkhorn_codes",
      [](const MatrixTuple& scores, double epsilon, Address sample_target, Address potential, int dtype, Address codes,
         Address u, int threads) {
        const SinkhornProblem t = sinkhorn_problem(scores, epsilon, sample_target);
        const DType code = code_dtype(t, dtype);
        const void* const v = required("potential", potential);
        void *const to = required("codes", codes), *const samples = required("u", u);
        run_kernel(thread_count(threads), [&](const ExecutionContext& host) {
          kernels_for(t.scores.dtype, false).sinkhorn_codes(t, host, v, code, to, samples);
        });
      },
      unlocked, exact("scores"), py::arg("epsilon"), exact("sample_target"), exact("potential"), exact("dtype"),
      exact("codes"), exact("u"), exact("threads"));
  m.def(
      "unit",
      [](const MatrixTuple& z, Address out, int threads) {
        const Matrix rows = matrix("z", z);
        void* const to = required("out", out);
        run_kernel(thread_count(threads),
                   [&](const ExecutionContext& host) { kernels_for(rows.dtype, false).unit(rows, host, to); });
      },
      unlocked, exact("z"), exact("out"), exact("threads"));
  m.def(
      "unit_backward",
      [](const MatrixTuple& z, const MatrixTuple& d_unit, Address out, int threads) {
        const Matrix rows = matrix("z", z), g = matrix("d_unit", d_unit);
        demand(g.n == rows.n && g.d == rows.d, "d_unit must have the shape of z, got ", g.n, " and ", g.d);
        void* const to = required("out", out);
        run_kernel(thread_count(threads), [&](const ExecutionContext& host) {
          kernels_for(rows.dtype, false).unit_backward(rows, host, g, to);
        });
      },
      unlocked, exact("z"), exact("d_unit"), exact("out"), exact("threads"));
}
