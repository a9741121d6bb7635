/* What the extension modules share: arguments taken from Python, checked before a value of them is read. */
#ifndef GGEXT_BINDING_H
#define GGEXT_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "rope.h"

/* Buffers that an entry holds: two tables of two arrays each, and two arrays more. */
struct ggext_buffers {
    Py_buffer views[6];
    size_t n;
};

/* Gives all buffers back. Every entry calls it once, on success and on failure alike. */
void ggext_release(struct ggext_buffers *buffers);

/* What every entry shares, checked: the tables and how many threads may work. */
struct ggext_request {
    struct ggext_rope rope;
    size_t threads;
};

/* One table as Python passes it, all or none: (positions, offset, inv_freq, attention_factor), or None. */
#define GGEXT_TABLE_ARGUMENT "(positions, offset, inv_freq, attention_factor) or None"

/* Takes both tables, of which one may be None, and checks all but the size of the positions; returns 0, or -1 with an
 * exception set. The first table is `to`, the second `from`; see struct ggext_rope. */
int ggext_take_request(struct ggext_buffers *buffers, PyObject *to, PyObject *from, int neox, int threads,
                       struct ggext_request *request);

/* Looks at every frequency and position, without the GIL; returns 0, or -1 with an exception set. */
int ggext_check_angles(const struct ggext_request *request);

/* How many positions the request has. */
size_t ggext_n_positions(const struct ggext_request *request);

/* Rows and a second array of their shape and type, which a rotation writes to and a comparison reads. Both live as long
 * as the buffers that they were taken into. */
struct ggext_rows {
    struct ggext_shape shape;
    const void *rows;
    const Py_buffer *second;
};

/* Takes rows, and a second array of their shape (named second_name, written to if writable), of the type that the
 * number stands for; returns 0, or -1 with an exception set. The second may be the first, if it does not overlap it
 * otherwise. */
int ggext_take_rows(struct ggext_buffers *buffers, const struct ggext_request *request, int type, PyObject *rows,
                    PyObject *second, const char *second_name, int writable, struct ggext_rows *taken);

/* Takes a writable array (positions, pairs) of float32 or float64; returns it, or NULL with an exception set. */
const Py_buffer *ggext_take_table(struct ggext_buffers *buffers, const struct ggext_request *request, PyObject *object,
                                  const char *name);

/* Takes a one-dimensional array of what the number stands for, one of enum ggext_type or GGEXT_Q8_0 (bytes); returns it,
 * or NULL with an exception set. */
const Py_buffer *ggext_take_values(struct ggext_buffers *buffers, int type, PyObject *object, const char *name,
                                   int writable);

/* Says whether two views have bytes in common. */
int ggext_share_memory(const Py_buffer *a, const Py_buffer *b);

/* The module function rotate of the CPU and of the GPU differ in what this calls: the work, without the GIL. Returns
 * NULL, or what went wrong. */
typedef const char *(*ggext_rotation)(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows,
                                      void *out, size_t threads);

/* rotate(rows, type, to, from, neox, threads, out): None, or NULL with an exception set. */
PyObject *ggext_rotate_entry(PyObject *arguments, ggext_rotation rotation);

/* How many devices a GPU backend can use; where 0, *reason is why, in words that live as long as the program. */
typedef int (*ggext_device_count)(const char **reason);

/* devices(): (number of devices, None or why there is none), or NULL with an exception set. */
PyObject *ggext_devices_entry(PyObject *arguments, ggext_device_count devices);

#endif
