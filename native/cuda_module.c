/* The CPython binding of the CUDA backend: ggext._cuda, a module of its own, loaded on first use, so that ggext._native
 * can be imported on any machine. The rules are module.c's; what CUDA refuses is a RuntimeError. */
#include "binding.h"
#include "cuda.h"

PyDoc_STRVAR(devices_doc, "devices()\n--\n\nReturn (number of devices that can be used, None or why there is none).");

static PyObject *py_devices(PyObject *module, PyObject *arguments)
{
    (void)module;
    return ggext_devices_entry(arguments, ggext_cuda_devices);
}

PyDoc_STRVAR(rotate_doc,
             "rotate(rows, type, to, from, neox, threads, out, /)\n--\n\n"
             "What ggext._native.rotate does, on the device, with its bits; rows and out lie in host memory.");

static PyObject *py_rotate(PyObject *module, PyObject *arguments)
{
    (void)module;
    return ggext_rotate_entry(arguments, ggext_cuda_rotate);
}

PyDoc_STRVAR(measure_doc,
             "measure(type, to, neox, n_heads, head_dim, repeats, /)\n--\n\n"
             "Return seconds of the fastest rotation, and of the fastest copy of the same bytes, on the device.");

static PyObject *py_measure(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *to;
    int type, neox, repeats;
    Py_ssize_t n_heads, head_dim;
    if (!PyArg_ParseTuple(arguments, "iOpnni:measure", &type, &to, &neox, &n_heads, &head_dim, &repeats))
        return NULL;

    struct ggext_buffers buffers = {.n = 0};
    struct ggext_request request;
    double rotate_seconds = 0.0;
    double copy_seconds = 0.0;
    const char *failure = NULL;
    int ok = ggext_take_request(&buffers, to, Py_None, neox, 1, &request) == 0 && ggext_check_angles(&request) == 0;
    const Py_ssize_t most = (Py_ssize_t)1 << 20;
    if (ok && (type < GGEXT_F32 || type > GGEXT_BF16 || repeats < 1 || n_heads < 1 || n_heads > most ||
               head_dim > most || (size_t)head_dim / 2 < request.rope.n_pairs || ggext_n_positions(&request) < 1 ||
               ggext_n_positions(&request) > (size_t)most)) {
        PyErr_SetString(PyExc_ValueError,
                        "type, n_heads, head_dim, repeats or the number of positions is out of range");
        ok = 0;
    }
    if (ok) {
        struct ggext_shape shape = {ggext_n_positions(&request), (size_t)n_heads, (size_t)head_dim,
                                    (enum ggext_type)type};
        Py_BEGIN_ALLOW_THREADS
        failure = ggext_cuda_measure(&request.rope, shape, repeats, &rotate_seconds, &copy_seconds);
        Py_END_ALLOW_THREADS
    }
    ggext_release(&buffers);
    if (ok && failure != NULL) {
        PyErr_SetString(PyExc_RuntimeError, failure);
        ok = 0;
    }
    return ok ? Py_BuildValue("(dd)", rotate_seconds, copy_seconds) : NULL;
}

static PyMethodDef methods[] = {
    {"devices", py_devices, METH_VARARGS, devices_doc},
    {"rotate", py_rotate, METH_VARARGS, rotate_doc},
    {"measure", py_measure, METH_VARARGS, measure_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ggext._cuda",
    .m_doc = "Rotary position embedding on a CUDA device; use it through ggext.native.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__cuda(void)
{
    return PyModuleDef_Init(&definition);
}
