/* NumPy arrays to the structs of the ABI, and calls of one recurrence. A prepared step takes 0.3 us, of which its arithmetic
   is 0.1. A foreign function interface takes 0.17 us for the address of each array; here it is a load.

   Nothing is computed in this module. It is given the addresses of the core's functions by the module that has them. */
#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>
#include <string.h>

#include "../hotloop.h"

static __typeof__(&hotloop_forward) run_forward;
static __typeof__(&hotloop_backward) run_backward;
static __typeof__(&hotloop_status_string) status_string;

static int is_plain(PyObject* object, PyObject* dtype, PyObject* shape) {
  if (!PyArray_CheckExact(object)) return 0;
  PyArrayObject* const array = (PyArrayObject*)object;
  const int usable = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED;
  if ((PyObject*)PyArray_DESCR(array) != dtype || (PyArray_FLAGS(array) & usable) != usable ||
      PyArray_NDIM(array) != PyTuple_Size(shape)) {
    return 0;
  }
  for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
    if (PyArray_DIM(array, axis) != PyLong_AsSsize_t(PyTuple_GetItem(shape, axis))) return 0;
  }
  return 1;
}

/* The first byte of an array and the one behind its last; nothing where it has no element. */
static int extent(PyArrayObject* array, uintptr_t* first, uintptr_t* last) {
  *first = (uintptr_t)PyArray_DATA(array);
  *last = *first + (uintptr_t)PyArray_ITEMSIZE(array);
  for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
    const npy_intp length = PyArray_DIM(array, axis), stride = PyArray_STRIDE(array, axis);
    if (length == 0) return 0;
    if (stride < 0) *first += (uintptr_t)(stride * (length - 1));
    if (stride > 0) *last += (uintptr_t)(stride * (length - 1));
  }
  return 1;
}

/* plain(array, dtype, shape): whether it can be used as it lies, a NumPy array and no subclass, of that very dtype and that
   shape, contiguous and aligned. */
static PyObject* plain(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  if (count != 3 || !PyTuple_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "plain: expected an array, a dtype and a shape");
    return NULL;
  }
  const int result = is_plain(args[0], args[1], args[2]);
  return PyErr_Occurred() ? NULL : PyBool_FromLong(result);
}

/* plain_out(array, dtype, shape, others): whether it is plain and writeable, and lies apart from the others, each an array or
   None. False may mean that this cannot be said from where they begin and end. */
static PyObject* plain_out(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  if (count != 4 || !PyTuple_Check(args[2]) || !PyTuple_Check(args[3])) {
    PyErr_SetString(PyExc_TypeError, "plain_out: expected an array, a dtype, a shape and a tuple of arrays");
    return NULL;
  }
  uintptr_t first, last, from, to;
  int result = is_plain(args[0], args[1], args[2]) && PyArray_ISWRITEABLE((PyArrayObject*)args[0]);
  const int empty = result && !extent((PyArrayObject*)args[0], &first, &last);
  for (Py_ssize_t i = 0; result && !empty && i < PyTuple_Size(args[3]); ++i) {
    PyObject* const other = PyTuple_GetItem(args[3], i);
    if (other == Py_None) continue;
    if (!PyArray_Check(other)) {
      result = 0;
    } else if (extent((PyArrayObject*)other, &from, &to)) {
      result = to <= first || last <= from;
    }
  }
  return PyErr_Occurred() ? NULL : PyBool_FromLong(result);
}

/* Where an argument lies: an array, an address, or None. NULL with an exception for anything else. */
static void* address(PyObject* argument) {
  if (argument == Py_None) return NULL;
  if (PyArray_Check(argument)) return PyArray_DATA((PyArrayObject*)argument);
  return PyLong_AsVoidPtr(argument);
}

enum { kSizes = 12, kMostArrays = 13 + HOTLOOP_PARAMETER_COUNT };

/* What a call of one recurrence begins with: whatever keeps the rest alive, the plan's address, the weights (the address of a
   struct, or a tuple of the parameters), the executor's address, seq_len, batch_size, input_size, hidden_size, output_size,
   batch_first, accumulate, the workspace. */
typedef struct {
  const hotloop_plan* plan;
  const hotloop_executor* executor;
  hotloop_weights weights;
  hotloop_buffers buffers;
  void* workspace;
  int64_t workspace_bytes;
  void* arrays[kMostArrays];
} dense_call;

/* From `fewest` to `most` arrays follow. */
static int parse(dense_call* call, const char* name, PyObject* const* args, Py_ssize_t count, int fewest, int most) {
  if (count < kSizes + fewest || count > kSizes + most) {
    PyErr_Format(PyExc_TypeError, "%s: expected %d to %d arguments, got %zd", name, kSizes + fewest, kSizes + most,
                 count);
    return -1;
  }
  memset(call, 0, sizeof *call);
  call->plan = PyLong_AsVoidPtr(args[1]);
  hotloop_buffers* const buffers = &call->buffers;
  buffers->weights = &call->weights;
  if (!PyTuple_Check(args[2])) {
    buffers->weights = PyLong_AsVoidPtr(args[2]);
  } else if (PyTuple_Size(args[2]) <= HOTLOOP_PARAMETER_COUNT) {
    for (int i = 0; i < PyTuple_Size(args[2]); ++i) {
      call->weights.parameters[i] = address(PyTuple_GetItem(args[2], i));
    }
  } else {
    PyErr_Format(PyExc_TypeError, "%s: expected at most %d parameters, got %zd", name, HOTLOOP_PARAMETER_COUNT,
                 PyTuple_Size(args[2]));
    return -1;
  }
  call->executor = PyLong_AsVoidPtr(args[3]);
  const int64_t seq_len = buffers->seq_len = PyLong_AsLongLong(args[4]);
  const int64_t batch_size = buffers->batch_size = PyLong_AsLongLong(args[5]);
  const int64_t input_size = PyLong_AsLongLong(args[6]), hidden_size = PyLong_AsLongLong(args[7]);
  const int64_t output_size = PyLong_AsLongLong(args[8]);
  const int64_t rows_t = args[9] == Py_True ? 1 : batch_size, rows_b = args[9] == Py_True ? seq_len : 1;
  buffers->x_stride_t = rows_t * input_size;
  buffers->x_stride_b = rows_b * input_size;
  buffers->output_stride_t = rows_t * output_size;
  buffers->output_stride_b = rows_b * output_size;
  buffers->resets_stride_t = rows_t;
  buffers->resets_stride_b = rows_b;
  buffers->c_stride_t = batch_size * hidden_size;
  buffers->c_stride_b = hidden_size;
  call->workspace = address(args[11]);
  if (PyArray_Check(args[11])) call->workspace_bytes = PyArray_SIZE((PyArrayObject*)args[11]);
  for (Py_ssize_t i = kSizes; i < count; ++i) call->arrays[i - kSizes] = address(args[i]);
  return PyErr_Occurred() ? -1 : 0;
}

/* Until it is done. Between two slices of a long call Ctrl-C is seen. */
static PyObject* run(dense_call* call, const hotloop_gradients* gradients) {
  int32_t status;
  do {
    Py_BEGIN_ALLOW_THREADS status =
        gradients == NULL
            ? run_forward(call->plan, &call->buffers, call->executor, call->workspace, call->workspace_bytes)
            : run_backward(call->plan, &call->buffers, gradients, call->executor, call->workspace,
                           call->workspace_bytes);
    Py_END_ALLOW_THREADS if (status == HOTLOOP_AGAIN && PyErr_CheckSignals() != 0) return NULL;
  } while (status == HOTLOOP_AGAIN);
  if (status == HOTLOOP_OK) Py_RETURN_NONE;
  return PyErr_Format(PyExc_RuntimeError, "hotloop: %s", status_string(status));
}

static PyObject* forward(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  dense_call call;
  if (parse(&call, "forward", args, count, 9, 9) != 0) return NULL;
  void* const* const a = call.arrays;
  hotloop_buffers* const to = &call.buffers;
  to->x = a[0], to->h0 = a[1], to->c0 = a[2], to->output = a[3], to->h_n = a[4], to->c_n = a[5];
  to->gates = a[6], to->c = a[7], to->resets = a[8];
  return run(&call, NULL);
}

static PyObject* backward(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  dense_call call;
  if (parse(&call, "backward", args, count, 13, kMostArrays) != 0) return NULL;
  void* const* const a = call.arrays;
  hotloop_buffers* const from = &call.buffers;
  hotloop_gradients to = {0};
  from->x = a[0], from->h0 = a[1], from->c0 = a[2], from->output = a[3], from->gates = a[4], from->c = a[5];
  from->resets = a[6];
  to.grad_output = a[7], to.grad_h_n = a[8], to.grad_c_n = a[9], to.grad_x = a[10];
  to.grad_output_stride_t = from->output_stride_t, to.grad_output_stride_b = from->output_stride_b;
  to.grad_x_stride_t = from->x_stride_t, to.grad_x_stride_b = from->x_stride_b;
  to.grad_h0 = a[11], to.grad_c0 = a[12];
  to.accumulate = args[10] == Py_True;
  for (int i = 0; i < HOTLOOP_PARAMETER_COUNT; ++i) to.grad_parameters[i] = a[13 + i]; /* NULL behind the last one */
  return run(&call, &to);
}

/* A sequence, [T, B, *], whose features lie side by side: where it begins, and its strides for time and batch in elements.
   That of an axis of length 1 may be anything and means nothing. */
static void* sequence(PyObject* argument, int64_t* stride_t, int64_t* stride_b) {
  *stride_t = *stride_b = 0;
  if (argument == Py_None) return NULL;
  if (!PyArray_Check(argument) || PyArray_NDIM((PyArrayObject*)argument) < 2) {
    PyErr_SetString(PyExc_TypeError, "hotloop._calls: expected an array of at least two dimensions");
    return NULL;
  }
  PyArrayObject* const array = (PyArrayObject*)argument;
  const npy_intp size = PyArray_ITEMSIZE(array);
  if (PyArray_DIM(array, 0) > 1) *stride_t = PyArray_STRIDE(array, 0) / size;
  if (PyArray_DIM(array, 1) > 1) *stride_b = PyArray_STRIDE(array, 1) / size;
  return PyArray_DATA(array);
}

static PyObject* done(void) {
  if (PyErr_Occurred()) return NULL;
  Py_RETURN_NONE;
}

static int expect(const char* name, Py_ssize_t wanted, Py_ssize_t count) {
  if (count == wanted) return 1;
  PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments, got %zd", name, wanted, count);
  return 0;
}

/* fill_buffers(buffers, weights, seq_len, batch_size, reverse, reset_to_initial, x, h0, c0, output, h_n, c_n, gates, c, lengths,
   offsets, resets, recurrent_mask): the struct at the first address. */
static PyObject* fill_buffers(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  if (!expect("fill_buffers", 18, count)) return NULL;
  hotloop_buffers* const buffers = PyLong_AsVoidPtr(args[0]);
  if (buffers == NULL) return PyErr_Occurred() ? NULL : done();
  buffers->weights = PyLong_AsVoidPtr(args[1]);
  buffers->seq_len = PyLong_AsLongLong(args[2]);
  buffers->batch_size = PyLong_AsLongLong(args[3]);
  buffers->reverse = (int32_t)PyLong_AsLong(args[4]);
  buffers->reset_to_initial = (int32_t)PyLong_AsLong(args[5]);
  buffers->x = sequence(args[6], &buffers->x_stride_t, &buffers->x_stride_b);
  buffers->h0 = address(args[7]);
  buffers->c0 = address(args[8]);
  buffers->output = sequence(args[9], &buffers->output_stride_t, &buffers->output_stride_b);
  buffers->h_n = address(args[10]);
  buffers->c_n = address(args[11]);
  buffers->gates = address(args[12]);
  buffers->c = sequence(args[13], &buffers->c_stride_t, &buffers->c_stride_b);
  buffers->lengths = address(args[14]);
  buffers->offsets = address(args[15]);
  buffers->resets = sequence(args[16], &buffers->resets_stride_t, &buffers->resets_stride_b);
  buffers->recurrent_mask = address(args[17]);
  return done();
}

/* fill_gradients(gradients, grad_output, grad_h_n, grad_c_n, grad_c, grad_x, grad_h0, grad_c0, *parameters): the struct at the
   first address. */
static PyObject* fill_gradients(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  if (count > 8 + HOTLOOP_PARAMETER_COUNT || count < 8) expect("fill_gradients", 8 + HOTLOOP_PARAMETER_COUNT, count);
  if (PyErr_Occurred()) return NULL;
  hotloop_gradients* const to = PyLong_AsVoidPtr(args[0]);
  if (to == NULL) return PyErr_Occurred() ? NULL : done();
  to->grad_output = sequence(args[1], &to->grad_output_stride_t, &to->grad_output_stride_b);
  to->grad_h_n = address(args[2]);
  to->grad_c_n = address(args[3]);
  to->grad_c = sequence(args[4], &to->grad_c_stride_t, &to->grad_c_stride_b);
  to->grad_x = sequence(args[5], &to->grad_x_stride_t, &to->grad_x_stride_b);
  to->grad_h0 = address(args[6]);
  to->grad_c0 = address(args[7]);
  for (Py_ssize_t i = 8; i < count; ++i) to->grad_parameters[i - 8] = address(args[i]);
  return done();
}

/* The addresses of hotloop_forward, hotloop_backward and hotloop_status_string. */
static PyObject* bind(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  (void)module;
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "bind: expected three addresses");
    return NULL;
  }
  *(void**)&run_forward = PyLong_AsVoidPtr(args[0]);
  *(void**)&run_backward = PyLong_AsVoidPtr(args[1]);
  *(void**)&status_string = PyLong_AsVoidPtr(args[2]);
  if (PyErr_Occurred()) return NULL;
  Py_RETURN_NONE;
}

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {FUNCTION(plain),        FUNCTION(plain_out),      FUNCTION(forward), FUNCTION(backward),
                                FUNCTION(fill_buffers), FUNCTION(fill_gradients), FUNCTION(bind),    {0}};

static int initialize(PyObject* module) {
  (void)module;
  /* The addresses below are the process's, and NumPy's are those of the interpreter that imported it first. */
  if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
    PyErr_SetString(PyExc_ImportError, "the native module runs in the main interpreter, not in a subinterpreter");
    return -1;
  }
  import_array1(-1);
  return 0;
}

/* Without Py_mod_gil: a Python that can do without the GIL turns it on. */
static PyModuleDef_Slot slots[] = {{Py_mod_exec, initialize}, {0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_calls", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__calls(void) { return PyModuleDef_Init(&definition); }
