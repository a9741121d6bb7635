/* The CPython binding: ggext._native. Limited API of 3.11, so one abi3 wheel serves every later Python.
 *
 * Every entry takes C-contiguous buffers, checks type, shape, alignment and bounds of each before it reads a value,
 * releases the GIL for the work, and raises TypeError or ValueError; none aborts. ggext/native.py is the public face of
 * the rotation; ggext/gguf calls the file tricks (OSError) itself. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "files.h"
#include "log.h"
#include "vectors.h"

PyDoc_STRVAR(rotate_doc, "rotate(rows, type, to, from, neox, threads, out, /)\n--\n\n"
                         "Write rows, turned from a table to another, to out, which may be rows itself. "
                         "type: 0 float32, 1 float16, 2 bfloat16 as uint16. "
                         "A table: " GGEXT_TABLE_ARGUMENT ".");

/* ggext_rotate as an ggext_rotation: it cannot fail. */
static const char *rotate_on_cpu(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out,
                                 size_t threads)
{
    ggext_rotate(rope, shape, rows, out, threads);
    return NULL;
}

static PyObject *py_rotate(PyObject *module, PyObject *arguments)
{
    (void)module;
    return ggext_rotate_entry(arguments, rotate_on_cpu);
}

PyDoc_STRVAR(cos_sin_doc, "cos_sin(to, threads, cos_out, sin_out, /)\n--\n\n"
                          "Write the gain times cos and sin of every angle to two arrays (positions, pairs), both of "
                          "float32 or both of float64.");

static PyObject *py_cos_sin(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *to, *cos_object, *sin_object;
    int threads;
    if (!PyArg_ParseTuple(arguments, "OiOO:cos_sin", &to, &threads, &cos_object, &sin_object))
        return NULL;

    struct ggext_buffers buffers = {.n = 0};
    struct ggext_request request;
    const Py_buffer *cos_out = NULL;
    const Py_buffer *sin_out = NULL;
    int ok = ggext_take_request(&buffers, to, Py_None, 0, threads, &request) == 0 &&
             (cos_out = ggext_take_table(&buffers, &request, cos_object, "cos_out")) != NULL &&
             (sin_out = ggext_take_table(&buffers, &request, sin_object, "sin_out")) != NULL &&
             ggext_check_angles(&request) == 0;
    if (ok && cos_out->itemsize != sin_out->itemsize) {
        PyErr_SetString(PyExc_TypeError, "cos_out and sin_out must have the same type");
        ok = 0;
    }
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        ggext_cos_sin(&request.rope, ggext_n_positions(&request), cos_out->buf, sin_out->buf, cos_out->itemsize == 8,
                      request.threads);
        Py_END_ALLOW_THREADS
    }
    ggext_release(&buffers);
    return ok ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(worst_error_doc,
             "worst_error(actual, rows, type, to, from, neox, threads, /)\n--\n\n"
             "Return (error, row, head, dimension): the largest difference of actual from the rows turned in float64.");

static PyObject *py_worst_error(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *actual_object, *rows_object, *to, *from;
    int type, neox, threads;
    if (!PyArg_ParseTuple(arguments, "OOiOOpi:worst_error", &actual_object, &rows_object, &type, &to, &from, &neox,
                          &threads))
        return NULL;

    struct ggext_buffers buffers = {.n = 0};
    struct ggext_request request;
    struct ggext_rows taken;
    struct ggext_worst worst = {0};
    int ok = ggext_take_request(&buffers, to, from, neox, threads, &request) == 0 &&
             ggext_take_rows(&buffers, &request, type, rows_object, actual_object, "actual", 0, &taken) == 0 &&
             ggext_check_angles(&request) == 0;
    if (ok && taken.shape.n == 0) {
        PyErr_SetString(PyExc_ValueError, "rows is empty: there is nothing to compare");
        ok = 0;
    }
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        worst = ggext_worst_error(&request.rope, taken.shape, taken.rows, taken.second->buf, request.threads);
        Py_END_ALLOW_THREADS
    }
    ggext_release(&buffers);
    if (!ok)
        return NULL;
    return Py_BuildValue("(dnnn)", worst.error, (Py_ssize_t)worst.row, (Py_ssize_t)worst.head,
                         (Py_ssize_t)worst.dimension);
}

PyDoc_STRVAR(convert_doc, "convert(values, type, out, out_type, /)\n--\n\n"
                          "Write values to out in another type, and return the place of the first that it cannot hold, "
                          "or -1. type: 0 float32, 1 float16, 2 bfloat16 as uint16; out_type: these, or 3 for Q8_0 as "
                          "uint8.");

/* Checks two views for ggext_convert; returns 0, or -1 with an exception set. */
static int check_sizes(const Py_buffer *values, const Py_buffer *out, int to)
{
    const Py_ssize_t n = values->shape[0];
    const Py_ssize_t expected = to == GGEXT_Q8_0 ? n / GGEXT_Q8_0_VALUES * GGEXT_Q8_0_BYTES : n;
    if (to == GGEXT_Q8_0 && n % GGEXT_Q8_0_VALUES != 0) {
        PyErr_Format(PyExc_ValueError, "values has %zd items, which are not whole blocks of %d", n, GGEXT_Q8_0_VALUES);
        return -1;
    }
    if (out->shape[0] != expected) {
        PyErr_Format(PyExc_ValueError, "out must have %zd items, not %zd", expected, out->shape[0]);
        return -1;
    }
    if (ggext_share_memory(values, out)) {
        PyErr_SetString(PyExc_ValueError, "out overlaps values: it must lie apart");
        return -1;
    }
    return 0;
}

static PyObject *py_convert(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *values_object, *out_object;
    int from, to;
    if (!PyArg_ParseTuple(arguments, "OiOi:convert", &values_object, &from, &out_object, &to))
        return NULL;
    if (from < GGEXT_F32 || from > GGEXT_BF16 || to < GGEXT_F32 || to > GGEXT_Q8_0)
        return PyErr_Format(PyExc_ValueError, "type must be 0 to 2 and out_type 0 to 3, not %d and %d", from, to);

    struct ggext_buffers buffers = {.n = 0};
    size_t first_lost = 0;
    const Py_buffer *values = ggext_take_values(&buffers, from, values_object, "values", 0);
    const Py_buffer *out = values == NULL ? NULL : ggext_take_values(&buffers, to, out_object, "out", 1);
    const int ok = out != NULL && check_sizes(values, out, to) == 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        first_lost = ggext_convert((enum ggext_type)from, values->buf, to, out->buf, (size_t)values->shape[0]);
        Py_END_ALLOW_THREADS
    }
    const int all_held = ok && first_lost == (size_t)values->shape[0];
    ggext_release(&buffers);
    return ok ? PyLong_FromSsize_t(all_held ? -1 : (Py_ssize_t)first_lost) : NULL;
}

/* Sets OSError for an errno; returns NULL. Not PyErr_SetFromErrno: on Windows errno is of the C library that this module was built with, not Python's. */
static PyObject *raise_os_error(int number)
{
    PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", number, strerror(number));
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

PyDoc_STRVAR(reserve_doc,
             "reserve(descriptor, nbytes, /)\n--\n\n"
             "Give an open, empty file that many bytes on its disk, its size unchanged. Return whether the "
             "system can do that; raise OSError where the disk has less.");

static PyObject *py_reserve(PyObject *module, PyObject *arguments)
{
    (void)module;
    int descriptor;
    long long nbytes;
    int failure;
    if (!PyArg_ParseTuple(arguments, "iL:reserve", &descriptor, &nbytes))
        return NULL;
    if (nbytes < 1)
        return PyErr_Format(PyExc_ValueError, "nbytes must be 1 or more, not %lld", nbytes);
    Py_BEGIN_ALLOW_THREADS
    failure = ggext_reserve(descriptor, nbytes);
    Py_END_ALLOW_THREADS
    if (failure != 0 && failure != EOPNOTSUPP)
        return raise_os_error(failure);
    return PyBool_FromLong(failure == 0);
}

PyDoc_STRVAR(use_vectors_doc,
             "use_vectors(level, /)\n--\n\n"
             "Allow vector instructions up to a level: 0 the build's own, 1 AVX2, 2 AVX-512. For tests "
             "and measurements: no result depends on it. Return the level in use before.");

static PyObject *py_use_vectors(PyObject *module, PyObject *arguments)
{
    (void)module;
    int level;
    if (!PyArg_ParseTuple(arguments, "i:use_vectors", &level))
        return NULL;
    return PyLong_FromLong(ggext_use_vectors(level));
}

PyDoc_STRVAR(skip_strings_doc, "skip_strings(data, at, n, /)\n--\n\n"
                               "Return where the n strings of a GGUF array end that start at byte at of data, or "
                               "~(where the first one starts that does not fit), which is negative.");

static PyObject *py_skip_strings(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *object;
    Py_ssize_t at;
    unsigned long long n;
    if (!PyArg_ParseTuple(arguments, "OnK:skip_strings", &object, &at, &n))
        return NULL;
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    if (at < 0 || at > view.len) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "at lies outside of data");
        return NULL;
    }
    int64_t end;
    Py_BEGIN_ALLOW_THREADS
    end = ggext_skip_strings(view.buf, (size_t)view.len, (size_t)at, n);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromLongLong(end);
}

PyDoc_STRVAR(shift_range_doc, "shift_range(file, collapse, offset, length, /)\n--\n\n"
                              "Insert zeros into an open file by moving extents, or collapse that range. OSError "
                              "(EOPNOTSUPP) where the file system or the platform cannot.");

static PyObject *py_shift_range(PyObject *module, PyObject *arguments)
{
    (void)module;
    int file, collapse;
    long long offset, length;
    if (!PyArg_ParseTuple(arguments, "ipLL:shift_range", &file, &collapse, &offset, &length))
        return NULL;
    const enum ggext_shift shift = collapse ? GGEXT_COLLAPSE : GGEXT_INSERT;
    int failure;
    Py_BEGIN_ALLOW_THREADS
    failure = ggext_shift_range(file, shift, offset, length);
    Py_END_ALLOW_THREADS
    if (failure != 0)
        return raise_os_error(failure);
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(copy_doc, "copy(source, target, source_at, target_at, length, /)\n--\n\n"
                       "Copy bytes from an open file to another. Return how many: fewer only where the source ends.");

static PyObject *py_copy(PyObject *module, PyObject *arguments)
{
    (void)module;
    int source, target;
    long long source_at, target_at, length;
    if (!PyArg_ParseTuple(arguments, "iiLLL:copy", &source, &target, &source_at, &target_at, &length))
        return NULL;
    if (source_at < 0 || target_at < 0 || length < 0 || length > INT64_MAX - source_at ||
        length > INT64_MAX - target_at)
        return PyErr_Format(PyExc_ValueError, "offsets and length must be 0 or more, and end below 2**63");
    int64_t copied;
    int failure;
    Py_BEGIN_ALLOW_THREADS
    failure = ggext_copy(source, target, source_at, target_at, length, &copied);
    Py_END_ALLOW_THREADS
    return failure != 0 ? raise_os_error(failure) : PyLong_FromLongLong(copied);
}

PyDoc_STRVAR(log_callback_doc, "log_callback($module, /)\n--\n\n"
                               "The address of a ggml_log_callback, which keeps texts for take_log.");

static PyObject *py_log_callback(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromVoidPtr((void *)(uintptr_t)ggext_log_add);
}

PyDoc_STRVAR(take_log_doc, "take_log($module, /)\n--\n\n"
                           "What llama.cpp logged in this thread since the last call: each text after its level, a\n"
                           "digit, and before a NUL. Raises MemoryError.");

static PyObject *py_take_log(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    size_t size;
    char *texts = ggext_log_take(&size);
    PyObject *bytes = PyBytes_FromStringAndSize(texts, (Py_ssize_t)size);
    free(texts);
    return bytes;
}

static PyMethodDef methods[] = {
    {"rotate", py_rotate, METH_VARARGS, rotate_doc},
    {"cos_sin", py_cos_sin, METH_VARARGS, cos_sin_doc},
    {"worst_error", py_worst_error, METH_VARARGS, worst_error_doc},
    {"convert", py_convert, METH_VARARGS, convert_doc},
    {"reserve", py_reserve, METH_VARARGS, reserve_doc},
    {"skip_strings", py_skip_strings, METH_VARARGS, skip_strings_doc},
    {"shift_range", py_shift_range, METH_VARARGS, shift_range_doc},
    {"copy", py_copy, METH_VARARGS, copy_doc},
    {"use_vectors", py_use_vectors, METH_VARARGS, use_vectors_doc},
    {"log_callback", py_log_callback, METH_NOARGS, log_callback_doc},
    {"take_log", py_take_log, METH_NOARGS, take_log_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ggext._native",
    .m_doc = "Rotary position embedding and conversion of values on the CPU, through ggext.native; file tricks; logs.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
