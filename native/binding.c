/* Arguments of the extension modules: buffers, tables and rows out of Python objects.
 *
 * A buffer is checked in one order: type of the items, dimensions, contiguity, alignment, shape against bytes. Only then
 * is a value of it read. Every static function that can fail returns -1 or NULL with an exception set that names the
 * argument. */
#include "binding.h"

#include "convert.h"
#include "parallel.h"

/* What the items of a buffer may be. The first four are numbered as the types of values, which are cast to them. */
enum items { FLOAT32, FLOAT16, BFLOAT16_BITS, BYTES, FLOAT64, FLOAT32_OR_64, INTEGERS };

_Static_assert((int)FLOAT32 == (int)GGEXT_F32, "enum items begins as enum ggext_type");
_Static_assert((int)FLOAT16 == (int)GGEXT_F16, "enum items begins as enum ggext_type");
_Static_assert((int)BFLOAT16_BITS == (int)GGEXT_BF16, "enum items begins as enum ggext_type");
_Static_assert((int)BYTES == (int)GGEXT_Q8_0, "blocks of Q8_0 are bytes");

/* What each is called in a message, the formats of Python's struct module that it may have, and its bytes. */
static const struct {
    const char *name;
    const char *formats;
    Py_ssize_t smallest;
    Py_ssize_t largest;
} items_of[] = {
    [FLOAT32] = {"float32", "f", 4, 4},
    [FLOAT16] = {"float16", "e", 2, 2},
    [BFLOAT16_BITS] = {"uint16 (the bits of bfloat16)", "H", 2, 2},
    [BYTES] = {"uint8", "B", 1, 1},
    [FLOAT64] = {"float64", "d", 8, 8},
    [FLOAT32_OR_64] = {"float32 or float64", "fd", 4, 8},
    [INTEGERS] = {"int32 or int64", "ilq", 4, 8},
};

/* What a buffer must be. */
struct expected {
    const char *name;
    enum items items;
    int n_dimensions;
    int writable;
};

void ggext_release(struct ggext_buffers *buffers)
{
    while (buffers->n > 0)
        PyBuffer_Release(&buffers->views[--buffers->n]);
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

/* Says whether the items of a view are of that type, in native byte order. */
static int has_items(const Py_buffer *view, enum items items)
{
    char c = format_character(view->format);
    Py_ssize_t size = view->itemsize;
    if (size != items_of[items].smallest && size != items_of[items].largest)
        return 0;
    return c != 0 && strchr(items_of[items].formats, c) != NULL;
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

/* Checks a view against what is expected; returns 0, or -1 with an exception set. */
static int check_view(const Py_buffer *view, const struct expected *expected)
{
    if (!has_items(view, expected->items)) {
        PyErr_Format(PyExc_TypeError, "%s must be %s in native byte order, not items of format '%s'", expected->name,
                     items_of[expected->items].name, view->format ? view->format : "B");
        return -1;
    }
    if (view->ndim != expected->n_dimensions) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimensions, not %d", expected->name, expected->n_dimensions,
                     view->ndim);
        return -1;
    }
    if (!PyBuffer_IsContiguous(view, 'C')) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous: pass numpy.ascontiguousarray(...)", expected->name);
        return -1;
    }
    if ((uintptr_t)view->buf % (uintptr_t)view->itemsize != 0) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to its %zd-byte items: pass a copy", expected->name,
                     view->itemsize);
        return -1;
    }
    if (!shape_explains(view)) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, which its shape does not explain", expected->name, view->len);
        return -1;
    }
    return 0;
}

/* Takes the object's buffer into `buffers` and returns the view, or NULL with an exception set. */
static const Py_buffer *take(struct ggext_buffers *buffers, PyObject *object, struct expected expected)
{
    Py_buffer *view = &buffers->views[buffers->n];
    if (!PyObject_CheckBuffer(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be an array, not %R", expected.name, (PyObject *)Py_TYPE(object));
        return NULL;
    }
    if (PyObject_GetBuffer(object, view, expected.writable ? PyBUF_RECORDS : PyBUF_RECORDS_RO) < 0) {
        if (PyErr_ExceptionMatches(PyExc_BufferError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "%s must be a %splain strided array", expected.name,
                         expected.writable ? "writable " : "");
        }
        return NULL;
    }
    buffers->n++;
    return check_view(view, &expected) < 0 ? NULL : view;
}

const Py_buffer *ggext_take_values(struct ggext_buffers *buffers, int type, PyObject *object, const char *name,
                                   int writable)
{
    return take(buffers, object, (struct expected){name, (enum items)type, 1, writable});
}

/* Sets a ValueError whose format has one %R for the number; returns -1. */
static int refuse_number(const char *format, double number)
{
    PyObject *object = PyFloat_FromDouble(number);
    if (object != NULL)
        PyErr_Format(PyExc_ValueError, format, object);
    Py_XDECREF(object);
    return -1;
}

/* Takes a table from its tuple; None is no table. Returns 0, or -1 with an exception set. */
static int take_one_table(struct ggext_buffers *buffers, PyObject *tuple, struct ggext_table *table, size_t *n_pairs)
{
    PyObject *positions, *inv_freq;
    long long offset;
    *table = (struct ggext_table){.gain = 1.0};
    if (tuple == Py_None)
        return 0;
    if (!PyTuple_Check(tuple)) {
        PyErr_Format(PyExc_TypeError, "a table must be %s, not %R", GGEXT_TABLE_ARGUMENT, (PyObject *)Py_TYPE(tuple));
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "OLOd;a table must be " GGEXT_TABLE_ARGUMENT, &positions, &offset, &inv_freq,
                          &table->gain))
        return -1;
    if (!ggext_is_finite(table->gain) || table->gain <= 0.0)
        return refuse_number("attention_factor must be a finite number above 0, not %R", table->gain);

    const Py_buffer *freq = take(buffers, inv_freq, (struct expected){"inv_freq", FLOAT64, 1, 0});
    if (freq == NULL)
        return -1;
    if (freq->shape[0] == 0) {
        PyErr_SetString(PyExc_ValueError, "inv_freq is empty: it must hold one frequency for each rotated pair");
        return -1;
    }
    const Py_buffer *pos = take(buffers, positions, (struct expected){"positions", INTEGERS, 1, 0});
    if (pos == NULL)
        return -1;
    table->inv_freq = freq->buf;
    table->positions = (struct ggext_positions){pos->buf, (size_t)pos->shape[0], pos->itemsize == 8, offset};
    *n_pairs = (size_t)freq->shape[0];
    return 0;
}

int ggext_take_request(struct ggext_buffers *buffers, PyObject *to, PyObject *from, int neox, int threads,
                       struct ggext_request *request)
{
    size_t to_pairs = 0;
    size_t from_pairs = 0;
    struct ggext_rope *rope = &request->rope;
    if (threads < 1) {
        PyErr_Format(PyExc_ValueError, "threads must be 1 or more, not %d", threads);
        return -1;
    }
    if (take_one_table(buffers, to, &rope->to, &to_pairs) < 0 ||
        take_one_table(buffers, from, &rope->from, &from_pairs) < 0)
        return -1;
    if (to_pairs == 0 && from_pairs == 0) {
        PyErr_SetString(PyExc_TypeError, "one table at least must not be None");
        return -1;
    }
    if (to_pairs > 0 && from_pairs > 0 && to_pairs != from_pairs) {
        PyErr_Format(PyExc_ValueError, "the tables must have the same number of frequencies, not %zu and %zu",
                     from_pairs, to_pairs);
        return -1;
    }
    if (to_pairs > 0 && from_pairs > 0 && rope->to.positions.n != rope->from.positions.n) {
        PyErr_Format(PyExc_ValueError, "the tables must have the same number of positions, not %zu and %zu",
                     rope->from.positions.n, rope->to.positions.n);
        return -1;
    }
    double gain = rope->to.gain / rope->from.gain;
    if (!ggext_is_finite(gain) || gain <= 0.0)
        return refuse_number("the quotient of the attention factors must be a finite number above 0, not %R", gain);
    rope->n_pairs = to_pairs > 0 ? to_pairs : from_pairs;
    rope->layout = neox ? GGEXT_NEOX : GGEXT_NORM;
    request->threads = threads < GGEXT_MAX_THREADS ? (size_t)threads : (size_t)GGEXT_MAX_THREADS;
    return 0;
}

size_t ggext_n_positions(const struct ggext_request *request)
{
    const struct ggext_rope *rope = &request->rope;
    return rope->to.inv_freq != NULL ? rope->to.positions.n : rope->from.positions.n;
}

/* Says what is wrong with position i; returns -1. */
static int refuse_position(const struct ggext_table *table, size_t i)
{
    struct ggext_positions unshifted = table->positions;
    unshifted.offset = 0;
    long long position = ggext_position_at(unshifted, i);
    PyErr_Format(PyExc_ValueError,
                 "positions[%zu] is too large: %lld with the offset %lld is beyond 2**31, or its angle beyond 2**53", i,
                 position, (long long)table->positions.offset);
    return -1;
}

/* Looks at every frequency and position of one table, without the GIL; returns 0, or -1 with an exception set. */
static int check_table_angles(const struct ggext_table *table, size_t n_pairs)
{
    size_t bad_frequency = 0;
    size_t bad_position = table->positions.n;
    if (table->inv_freq == NULL)
        return 0;

    Py_BEGIN_ALLOW_THREADS
    while (bad_frequency < n_pairs && ggext_is_finite(table->inv_freq[bad_frequency]))
        bad_frequency++;
    if (bad_frequency == n_pairs)
        bad_position = ggext_first_bad_position(table, n_pairs);
    Py_END_ALLOW_THREADS

    if (bad_frequency < n_pairs) {
        PyObject *value = PyFloat_FromDouble(table->inv_freq[bad_frequency]);
        if (value != NULL)
            PyErr_Format(PyExc_ValueError, "inv_freq[%zu] is not a finite number but %R", bad_frequency, value);
        Py_XDECREF(value);
        return -1;
    }
    return bad_position < table->positions.n ? refuse_position(table, bad_position) : 0;
}

int ggext_check_angles(const struct ggext_request *request)
{
    const struct ggext_rope *rope = &request->rope;
    return check_table_angles(&rope->to, rope->n_pairs) < 0 ? -1 : check_table_angles(&rope->from, rope->n_pairs);
}

/* Takes one array of rows that goes with the request; returns it, or NULL with an exception set. */
static const Py_buffer *take_rows(struct ggext_buffers *buffers, const struct ggext_request *request, enum items items,
                                  PyObject *object, const char *name, int writable)
{
    const size_t n_positions = ggext_n_positions(request);
    const Py_buffer *rows = take(buffers, object, (struct expected){name, items, 3, writable});
    if (rows == NULL)
        return NULL;
    if ((size_t)rows->shape[0] != n_positions) {
        PyErr_Format(PyExc_ValueError, "%s has %zd rows but there are %zu positions", name, rows->shape[0],
                     n_positions);
        return NULL;
    }
    if (rows->shape[1] == 0 || request->rope.n_pairs > (size_t)rows->shape[2] / 2) {
        PyErr_Format(PyExc_ValueError, "%s has %zd heads of %zd dimensions: too small for %zu rotated pairs", name,
                     rows->shape[1], rows->shape[2], request->rope.n_pairs);
        return NULL;
    }
    return rows;
}

int ggext_share_memory(const Py_buffer *a, const Py_buffer *b)
{
    uintptr_t a_begin = (uintptr_t)a->buf;
    uintptr_t b_begin = (uintptr_t)b->buf;
    return a_begin < b_begin + (size_t)b->len && b_begin < a_begin + (size_t)a->len;
}

/* Says whether two views share memory without being the same memory. */
static int overlap(const Py_buffer *a, const Py_buffer *b)
{
    return a->buf != b->buf && ggext_share_memory(a, b);
}

int ggext_take_rows(struct ggext_buffers *buffers, const struct ggext_request *request, int type, PyObject *rows,
                    PyObject *second, const char *second_name, int writable, struct ggext_rows *taken)
{
    if (type < GGEXT_F32 || type > GGEXT_BF16) {
        PyErr_Format(PyExc_ValueError, "type must be 0, 1 or 2, not %d", type);
        return -1;
    }
    const Py_buffer *a = take_rows(buffers, request, (enum items)type, rows, "rows", 0);
    const Py_buffer *b =
        a == NULL ? NULL : take_rows(buffers, request, (enum items)type, second, second_name, writable);
    if (b == NULL)
        return -1;
    if (a->shape[1] != b->shape[1] || a->shape[2] != b->shape[2]) {
        PyErr_Format(PyExc_ValueError, "%s and rows must have the same shape", second_name);
        return -1;
    }
    if (writable && overlap(a, b)) {
        PyErr_Format(PyExc_ValueError, "%s overlaps rows: it must be rows itself or lie apart", second_name);
        return -1;
    }
    taken->shape =
        (struct ggext_shape){(size_t)a->shape[0], (size_t)a->shape[1], (size_t)a->shape[2], (enum ggext_type)type};
    taken->rows = a->buf;
    taken->second = b;
    return 0;
}

const Py_buffer *ggext_take_table(struct ggext_buffers *buffers, const struct ggext_request *request, PyObject *object,
                                  const char *name)
{
    const Py_buffer *table = take(buffers, object, (struct expected){name, FLOAT32_OR_64, 2, 1});
    if (table == NULL)
        return NULL;
    if ((size_t)table->shape[0] != ggext_n_positions(request) || (size_t)table->shape[1] != request->rope.n_pairs) {
        PyErr_Format(PyExc_ValueError, "%s must have shape (%zu, %zu), not (%zd, %zd)", name,
                     ggext_n_positions(request), request->rope.n_pairs, table->shape[0], table->shape[1]);
        return NULL;
    }
    return table;
}

PyObject *ggext_rotate_entry(PyObject *arguments, ggext_rotation rotation)
{
    PyObject *rows_object, *to, *from, *out_object;
    int type, neox, threads;
    if (!PyArg_ParseTuple(arguments, "OiOOpiO:rotate", &rows_object, &type, &to, &from, &neox, &threads, &out_object))
        return NULL;

    struct ggext_buffers buffers = {.n = 0};
    struct ggext_request request;
    struct ggext_rows taken;
    const char *failure = NULL;
    int ok = ggext_take_request(&buffers, to, from, neox, threads, &request) == 0 &&
             ggext_take_rows(&buffers, &request, type, rows_object, out_object, "out", 1, &taken) == 0 &&
             ggext_check_angles(&request) == 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        failure = rotation(&request.rope, taken.shape, taken.rows, taken.second->buf, request.threads);
        Py_END_ALLOW_THREADS
    }
    ggext_release(&buffers);
    if (!ok)
        return NULL;
    if (failure != NULL) {
        PyErr_SetString(PyExc_RuntimeError, failure);
        return NULL;
    }
    return Py_NewRef(Py_None);
}

PyObject *ggext_devices_entry(PyObject *arguments, ggext_device_count devices)
{
    if (!PyArg_ParseTuple(arguments, ":devices"))
        return NULL;
    const char *reason = NULL;
    int n;
    Py_BEGIN_ALLOW_THREADS
    n = devices(&reason);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(iz)", n, reason);
}
