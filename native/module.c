/* The CPython binding: ggext._native. Limited API of 3.11, so one abi3 wheel serves every later Python.
 *
 * Every entry takes C-contiguous buffers, checks type, shape, alignment and bounds of each before it reads a value,
 * releases the GIL for the work, and raises TypeError or ValueError; none aborts. ggext/native.py is the public face. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdarg.h>

#include "parallel.h"
#include "rope.h"

/* What a buffer must be. kind: 'f' for floating point, 'i' for signed integers. size: bytes of an item, 0 for 4 or 8. */
struct wanted {
    const char *name;
    char kind;
    Py_ssize_t size;
    int n_dimensions;
    int writable;
};

/* Buffers that an entry holds; release_all gives them back, on success and on failure alike. */
struct buffers {
    Py_buffer views[4];
    size_t n;
};

static void release_all(struct buffers *held)
{
    while (held->n > 0)
        PyBuffer_Release(&held->views[--held->n]);
}

/* Returns the type character of a native-order format, or 0. A buffer without a format is bytes. */
static char format_character(const char *format)
{
    const int probe = 1;
    const char native_order = *(const char *)&probe ? '<' : '>';
    if (format == NULL)
        return 'B';
    if (*format == '@' || *format == '=' || *format == native_order)
        format++;
    return format[0] != '\0' && format[1] == '\0' ? format[0] : 0;
}

static int has_kind(const Py_buffer *view, const struct wanted *wanted)
{
    char c = format_character(view->format);
    if (wanted->kind == 'f')
        return view->itemsize == wanted->size && c == (wanted->size == 4 ? 'f' : 'd');
    return (c == 'i' || c == 'l' || c == 'q') && (view->itemsize == 4 || view->itemsize == 8);
}

/* Says whether the sizes are not negative and their product times the item size, without overflow, is the length. */
static int shape_explains(const Py_buffer *view)
{
    Py_ssize_t bytes = view->itemsize;
    for (int i = 0; i < view->ndim; i++) {
        Py_ssize_t size = view->shape[i];
        if (size < 0 || (size > 0 && bytes > PY_SSIZE_T_MAX / size))
            return 0;
        bytes *= size;
    }
    return bytes == view->len;
}

/* Checks a view against what is wanted; returns 0, or -1 with an exception set. */
static int check_view(const Py_buffer *view, const struct wanted *wanted)
{
    if (!has_kind(view, wanted)) {
        PyErr_Format(PyExc_TypeError, "%s must be %s in native byte order, not items of format '%s'", wanted->name,
                     wanted->kind == 'i' ? "int32 or int64" : (wanted->size == 4 ? "float32" : "float64"),
                     view->format ? view->format : "B");
        return -1;
    }
    if (view->ndim != wanted->n_dimensions) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimensions, not %d", wanted->name, wanted->n_dimensions,
                     view->ndim);
        return -1;
    }
    if (!PyBuffer_IsContiguous(view, 'C')) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous: pass numpy.ascontiguousarray(...)", wanted->name);
        return -1;
    }
    if ((uintptr_t)view->buf % (uintptr_t)view->itemsize != 0) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to its %zd-byte items: pass a copy", wanted->name,
                     view->itemsize);
        return -1;
    }
    if (!shape_explains(view)) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, which its shape does not explain", wanted->name, view->len);
        return -1;
    }
    return 0;
}

/* Takes the object's buffer into `held` and returns the view, or NULL with an exception set. */
static const Py_buffer *take(struct buffers *held, PyObject *object, struct wanted wanted)
{
    Py_buffer *view = &held->views[held->n];
    if (!PyObject_CheckBuffer(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be an array, not %R", wanted.name, (PyObject *)Py_TYPE(object));
        return NULL;
    }
    if (PyObject_GetBuffer(object, view, wanted.writable ? PyBUF_RECORDS : PyBUF_RECORDS_RO) < 0) {
        if (PyErr_ExceptionMatches(PyExc_BufferError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "%s must be a %splain strided array", wanted.name,
                         wanted.writable ? "writable " : "");
        }
        return NULL;
    }
    held->n++;
    return check_view(view, &wanted) < 0 ? NULL : view;
}

/* What all entries share: the table and the positions, checked. */
struct request {
    struct ggext_rope rope;
    struct ggext_positions positions;
    size_t threads;
};

/* Checks the scalars and takes the two arrays; returns 0, or -1 with an exception set. */
static int take_request(struct buffers *held, PyObject *positions, PyObject *inv_freq, double gain, int neox,
                        int inverse, int threads, struct request *request)
{
    if (!isfinite(gain) || gain <= 0.0) {
        PyErr_SetString(PyExc_ValueError, "attention_factor must be a finite number above 0");
        return -1;
    }
    if (threads < 1) {
        PyErr_Format(PyExc_ValueError, "threads must be 1 or more, not %d", threads);
        return -1;
    }
    const Py_buffer *freq = take(held, inv_freq, (struct wanted){"inv_freq", 'f', 8, 1, 0});
    if (freq == NULL)
        return -1;
    if (freq->shape[0] == 0) {
        PyErr_SetString(PyExc_ValueError, "inv_freq is empty: it must hold one frequency for each rotated pair");
        return -1;
    }
    const Py_buffer *pos = take(held, positions, (struct wanted){"positions", 'i', 0, 1, 0});
    if (pos == NULL)
        return -1;
    request->rope = (struct ggext_rope){freq->buf, (size_t)freq->shape[0], gain, neox ? GGEXT_NEOX : GGEXT_NORM,
                                        inverse != 0};
    request->positions = (struct ggext_positions){pos->buf, (size_t)pos->shape[0], pos->itemsize == 8};
    request->threads = threads < GGEXT_MAX_THREADS ? (size_t)threads : (size_t)GGEXT_MAX_THREADS;
    return 0;
}

/* Takes an array of float32 rows that goes with the request; returns its values, or NULL with an exception set. */
static float *take_rows(struct buffers *held, PyObject *object, const char *name, int writable,
                        const struct request *request, struct ggext_shape *shape)
{
    const Py_buffer *rows = take(held, object, (struct wanted){name, 'f', 4, 3, writable});
    if (rows == NULL)
        return NULL;
    if ((size_t)rows->shape[0] != request->positions.n) {
        PyErr_Format(PyExc_ValueError, "%s has %zd rows but there are %zu positions", name, rows->shape[0],
                     request->positions.n);
        return NULL;
    }
    if (rows->shape[1] == 0 || request->rope.n_pairs > (size_t)rows->shape[2] / 2) {
        PyErr_Format(PyExc_ValueError, "%s has %zd heads of %zd dimensions: too small for %zu rotated pairs", name,
                     rows->shape[1], rows->shape[2], request->rope.n_pairs);
        return NULL;
    }
    *shape = (struct ggext_shape){(size_t)rows->shape[1], (size_t)rows->shape[2]};
    return rows->buf;
}

/* Takes a second array of the same shape as rows; returns its values, or NULL with an exception set. */
static float *take_same_shape(struct buffers *held, PyObject *object, const char *name, int writable,
                              const struct request *request, struct ggext_shape shape)
{
    struct ggext_shape other;
    float *values = take_rows(held, object, name, writable, request, &other);
    if (values != NULL && (other.n_heads != shape.n_heads || other.head_dim != shape.head_dim)) {
        PyErr_Format(PyExc_ValueError, "%s and rows must have the same shape", name);
        return NULL;
    }
    return values;
}

/* Takes a writable float32 array (positions, pairs); returns its values, or NULL with an exception set. */
static float *take_table(struct buffers *held, PyObject *object, const char *name, const struct request *request)
{
    const Py_buffer *table = take(held, object, (struct wanted){name, 'f', 4, 2, 1});
    if (table == NULL)
        return NULL;
    if ((size_t)table->shape[0] != request->positions.n || (size_t)table->shape[1] != request->rope.n_pairs) {
        PyErr_Format(PyExc_ValueError, "%s must have shape (%zu, %zu), not (%zd, %zd)", name, request->positions.n,
                     request->rope.n_pairs, table->shape[0], table->shape[1]);
        return NULL;
    }
    return table->buf;
}

/* Looks at every frequency and position, without the GIL; returns 0, or -1 with an exception set. */
static int check_angles(const struct request *request)
{
    const struct ggext_rope *rope = &request->rope;
    size_t bad_frequency = 0;
    size_t bad_position = request->positions.n;

    Py_BEGIN_ALLOW_THREADS
    while (bad_frequency < rope->n_pairs && isfinite(rope->inv_freq[bad_frequency]))
        bad_frequency++;
    if (bad_frequency == rope->n_pairs)
        bad_position = ggext_first_bad_position(request->positions, rope->inv_freq, rope->n_pairs);
    Py_END_ALLOW_THREADS

    if (bad_frequency < rope->n_pairs) {
        PyErr_Format(PyExc_ValueError, "inv_freq[%zu] is not a finite number", bad_frequency);
        return -1;
    }
    if (bad_position < request->positions.n) {
        PyErr_Format(PyExc_ValueError, "positions[%zu] is too large: it or its angle is above 2**53", bad_position);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(rotate_doc, "rotate(rows, positions, inv_freq, attention_factor, neox, inverse, threads, out, /)\n--\n\n"
                         "Write rows, turned, to out, which may be rows itself.");

static PyObject *py_rotate(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *rows_object, *positions, *inv_freq, *out_object;
    double gain;
    int neox, inverse, threads;
    if (!PyArg_ParseTuple(arguments, "OOOdppiO:rotate", &rows_object, &positions, &inv_freq, &gain, &neox, &inverse,
                          &threads, &out_object))
        return NULL;

    struct buffers held = {.n = 0};
    struct request request;
    struct ggext_shape shape;
    const float *rows = NULL;
    float *out = NULL;
    int ok = take_request(&held, positions, inv_freq, gain, neox, inverse, threads, &request) == 0 &&
             (rows = take_rows(&held, rows_object, "rows", 0, &request, &shape)) != NULL &&
             (out = take_same_shape(&held, out_object, "out", 1, &request, shape)) != NULL &&
             check_angles(&request) == 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        ggext_rotate(&request.rope, request.positions, shape, rows, out, request.threads);
        Py_END_ALLOW_THREADS
    }
    release_all(&held);
    return ok ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(cos_sin_doc, "cos_sin(positions, inv_freq, attention_factor, threads, cos_out, sin_out, /)\n--\n\n"
                          "Write the gain times cos and sin of every angle to two arrays (positions, pairs).");

static PyObject *py_cos_sin(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *positions, *inv_freq, *cos_object, *sin_object;
    double gain;
    int threads;
    if (!PyArg_ParseTuple(arguments, "OOdiOO:cos_sin", &positions, &inv_freq, &gain, &threads, &cos_object,
                          &sin_object))
        return NULL;

    struct buffers held = {.n = 0};
    struct request request;
    float *cos_out = NULL;
    float *sin_out = NULL;
    int ok = take_request(&held, positions, inv_freq, gain, 0, 0, threads, &request) == 0 &&
             (cos_out = take_table(&held, cos_object, "cos_out", &request)) != NULL &&
             (sin_out = take_table(&held, sin_object, "sin_out", &request)) != NULL && check_angles(&request) == 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        ggext_cos_sin(&request.rope, request.positions, cos_out, sin_out, request.threads);
        Py_END_ALLOW_THREADS
    }
    release_all(&held);
    return ok ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(worst_error_doc,
             "worst_error(actual, rows, positions, inv_freq, attention_factor, neox, inverse, threads, /)\n--\n\n"
             "Return (error, row, head, dimension): the largest difference of actual from the rows turned in float64.");

static PyObject *py_worst_error(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *actual_object, *rows_object, *positions, *inv_freq;
    double gain;
    int neox, inverse, threads;
    if (!PyArg_ParseTuple(arguments, "OOOOdppi:worst_error", &actual_object, &rows_object, &positions, &inv_freq,
                          &gain, &neox, &inverse, &threads))
        return NULL;

    struct buffers held = {.n = 0};
    struct request request;
    struct ggext_shape shape;
    struct ggext_worst worst = {0};
    const float *rows = NULL;
    const float *actual = NULL;
    int ok = take_request(&held, positions, inv_freq, gain, neox, inverse, threads, &request) == 0 &&
             (rows = take_rows(&held, rows_object, "rows", 0, &request, &shape)) != NULL &&
             (actual = take_same_shape(&held, actual_object, "actual", 0, &request, shape)) != NULL &&
             check_angles(&request) == 0;
    if (ok && request.positions.n == 0) {
        PyErr_SetString(PyExc_ValueError, "rows is empty: there is nothing to compare");
        ok = 0;
    }
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        worst = ggext_worst_error(&request.rope, request.positions, shape, rows, actual, request.threads);
        Py_END_ALLOW_THREADS
    }
    release_all(&held);
    if (!ok)
        return NULL;
    return Py_BuildValue("(dnnn)", worst.error, (Py_ssize_t)worst.row, (Py_ssize_t)worst.head,
                         (Py_ssize_t)worst.dimension);
}

static PyMethodDef methods[] = {
    {"rotate", py_rotate, METH_VARARGS, rotate_doc},
    {"cos_sin", py_cos_sin, METH_VARARGS, cos_sin_doc},
    {"worst_error", py_worst_error, METH_VARARGS, worst_error_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ggext._native",
    .m_doc = "Rotary position embedding on the CPU; use it through ggext.native.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
