// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 that runs nothing: it plays one H100, refuses what a driver refuses and lists what was launched.
// The names and numbers are those of cuda.h, which need not be there to build it.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define API __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500 };
enum { DEVICE = 0, PROCESSORS = 132, WARP = 32, THREADS = 1024, REGISTERS = 65536, DRIVER_VERSION = 13000 };
enum { SHARED_BY_DEFAULT = 48 << 10, SHARED_AT_MOST = 227 << 10, SHARED_OF_PROCESSOR = 228 << 10 };
enum { CLUSTER_BY_DEFAULT = 8, CLUSTER_AT_MOST = 16 };

// of a device
enum { WARP_SIZE = 10, REGISTERS_PER_BLOCK = 12, CLOCK_RATE = 13, MULTIPROCESSORS = 16, MEMORY_CLOCK = 36, BUS = 37 };
enum { MAJOR = 75, MINOR = 76, SHARED_PER_PROCESSOR = 81, SHARED_OPT_IN = 97 };
// of a function
enum { MAX_THREADS = 0, MAX_DYNAMIC_SHARED = 8, LARGE_CLUSTERS = 14 };
// of a launch
enum { CLUSTER = 4 };

typedef struct {
  uint32_t id, padding;
  uint32_t value[16];
} Attribute;

typedef struct {
  uint32_t grid[3], block[3], shared;
  void* stream;
  Attribute* attributes;
  uint32_t n_attributes;
} Launch;

typedef struct {
  char name[64];
  int shared, large_clusters;
} Function;

enum { MOST_FUNCTIONS = 1 << 14, MOST_NAMES = 1 << 14 };
static Function functions[MOST_FUNCTIONS];
static const char* names[MOST_NAMES];
static long n_functions, n_launches, n_maps, n_refused;
static char reason[256] = "nothing was refused";

static int refuse(const char* what, const char* of, unsigned long got, unsigned long allowed) {
  ++n_refused;
  snprintf(reason, sizeof reason, "the null driver refuses %s: %s %lu, allowed %lu", of, what, got, allowed);
  return INVALID_VALUE;
}

API long null_launches(void) { return n_launches; }
API long null_maps(void) { return n_maps; }
API long null_refused(void) { return n_refused; }
API const char* null_reason(void) { return reason; }
API const char* null_name(long launch) { return names[launch % MOST_NAMES]; }

API int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
API int cuDriverGetVersion(int* version) { return *version = DRIVER_VERSION, SUCCESS; }
API int cuGetErrorString(int error, const char** text) { return *text = error ? reason : "no error", SUCCESS; }
API int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == DEVICE ? SUCCESS : INVALID_VALUE; }
API int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
API int cuCtxGetCurrent(void** context) { return *context = functions, SUCCESS; }
API int cuCtxSetCurrent(void* context) { return context ? SUCCESS : INVALID_VALUE; }
API int cuCtxGetDevice(int* device) { return *device = DEVICE, SUCCESS; }
API int cuCtxGetLimit(size_t* value, int limit) { return *value = 1 << 20, limit < 0 ? INVALID_VALUE : SUCCESS; }
API int cuCtxSetLimit(int limit, size_t value) { return limit < 0 || !value ? INVALID_VALUE : SUCCESS; }
API int cuStreamIsCapturing(void* stream, int* status) { return (void)stream, *status = 0, SUCCESS; }

API int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = functions;
  return device == DEVICE ? SUCCESS : INVALID_VALUE;
}

API int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case WARP_SIZE:
      *value = WARP;
      break;
    case REGISTERS_PER_BLOCK:
      *value = REGISTERS;
      break;
    case MULTIPROCESSORS:
      *value = PROCESSORS;
      break;
    case MAJOR:
      *value = 9;
      break;
    case MINOR:
      *value = 0;
      break;
    case SHARED_PER_PROCESSOR:
      *value = SHARED_OF_PROCESSOR;
      break;
    case SHARED_OPT_IN:
      *value = SHARED_AT_MOST;
      break;
    case CLOCK_RATE:
    case MEMORY_CLOCK:
    case BUS:
      *value = 1;
      break;
    default:
      return refuse("number", "an attribute of the device that it does not know", attribute, 0);
  }
  return device == DEVICE ? SUCCESS : INVALID_VALUE;
}

// a cubin is an ELF file for the machine "NVIDIA CUDA"
API int cuModuleLoadData(void** module, const unsigned char* image) {
  static const unsigned char elf[4] = {0x7f, 'E', 'L', 'F'};
  *module = (void*)image;
  return memcmp(image, elf, sizeof elf) || image[18] != 190 ? INVALID_IMAGE : SUCCESS;
}
API int cuModuleUnload(void* module) { return module ? SUCCESS : INVALID_VALUE; }

API int cuModuleGetFunction(Function** function, void* module, const char* name) {
  if (!module || n_functions == MOST_FUNCTIONS) return NOT_FOUND;
  *function = &functions[n_functions++];
  snprintf((*function)->name, sizeof(*function)->name, "%s", name);
  (*function)->shared = SHARED_BY_DEFAULT;
  return SUCCESS;
}

API int cuFuncGetAttribute(int* value, int attribute, Function* function) {
  *value = attribute == MAX_THREADS ? THREADS : attribute == MAX_DYNAMIC_SHARED ? function->shared : 0;
  return SUCCESS;
}

// what this driver's CUDA has not heard of is an error that callers provide for, not a refusal
API int cuFuncSetAttribute(Function* function, int attribute, int value) {
  if (attribute == LARGE_CLUSTERS) return function->large_clusters = value, SUCCESS;
  if (attribute != MAX_DYNAMIC_SHARED) return INVALID_VALUE;
  if (value > SHARED_AT_MOST) return refuse("bytes of shared memory", function->name, value, SHARED_AT_MOST);
  return function->shared = value, SUCCESS;
}

API int cuFuncSetCacheConfig(Function* function, int config) {
  return function && config >= 0 ? SUCCESS : INVALID_VALUE;
}

API int cuOccupancyMaxActiveClusters(int* count, Function* function, const Launch* launch) {
  *count = PROCESSORS / CLUSTER_AT_MOST;
  return function && launch ? SUCCESS : INVALID_VALUE;
}

API int cuPointerGetAttribute(void* value, int attribute, uint64_t pointer) {
  memcpy(value, &pointer, sizeof pointer);
  return attribute < 0 ? INVALID_VALUE : SUCCESS;
}

API int cuLaunchKernelEx(const Launch* launch, Function* function, void** parameters, void** extra) {
  static const unsigned long widest[3] = {2147483647, 65535, 65535};
  const char* name = function->name;
  for (int k = 0; k < 3; ++k) {
    if (!launch->grid[k] || launch->grid[k] > widest[k]) return refuse("blocks", name, launch->grid[k], widest[k]);
  }
  unsigned long threads = (unsigned long)launch->block[0] * launch->block[1] * launch->block[2];
  if (!threads || threads > THREADS) return refuse("threads", name, threads, THREADS);
  if (launch->shared > (unsigned)function->shared) {
    return refuse("bytes of shared memory", name, launch->shared, function->shared);
  }
  for (uint32_t k = 0; k < launch->n_attributes; ++k) {
    const Attribute* a = &launch->attributes[k];
    if (a->id != CLUSTER) continue;
    unsigned long size = a->value[0], most = function->large_clusters ? CLUSTER_AT_MOST : CLUSTER_BY_DEFAULT;
    if (!size || size > most) return refuse("blocks of a cluster", name, size, most);
    if (launch->grid[0] % size)
      return refuse("blocks in clusters", name, launch->grid[0], launch->grid[0] / size * size);
  }
  names[n_launches++ % MOST_NAMES] = name;
  return parameters || extra ? SUCCESS : INVALID_VALUE;
}

static int bytes_of(int type) {
  static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  return type < 0 || type > 12 ? 0 : bytes[type];
}

API int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                               const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                               int swizzle, int promotion, int fill) {
  static const unsigned long widths[] = {~0ul, 32, 64, 128};
  const char* of = "a tensor map";
  unsigned long bytes = bytes_of(type), inner;
  if (!bytes || interleave || promotion < 0 || fill < 0) return refuse("type", of, type, 12);
  if ((uintptr_t)map % 64) return refuse("address of the map modulo 64", of, (uintptr_t)map % 64, 0);
  if ((uintptr_t)address % 16) return refuse("address modulo 16", of, (uintptr_t)address % 16, 0);
  if (rank < 1 || rank > 5) return refuse("rank", of, rank, 5);
  for (uint32_t k = 0; k < rank; ++k) {
    if (!sizes[k] || sizes[k] > 1ul << 32) return refuse("size", of, sizes[k], 1ul << 32);
    if (!box[k] || box[k] > 256) return refuse("box", of, box[k], 256);
    if (!steps[k] || steps[k] > 8) return refuse("step", of, steps[k], 8);
    if (k + 1 == rank) break;
    if (strides[k] % 16) return refuse("stride modulo 16", of, strides[k] % 16, 0);
    if (strides[k] >= 1ul << 40) return refuse("stride", of, strides[k], (1ul << 40) - 1);
  }
  if (rank > 1 && strides[0] < sizes[0] * bytes) return refuse("bytes of a row", of, sizes[0] * bytes, strides[0]);
  inner = box[0] * bytes;
  if (inner % 16) return refuse("bytes of a row of the box modulo 16", of, inner % 16, 0);
  if (swizzle < 0 || swizzle > 3) return refuse("swizzle", of, swizzle, 3);
  if (inner > widths[swizzle]) return refuse("bytes of a row of the box", of, inner, widths[swizzle]);
  ++n_maps;
  return SUCCESS;
}
