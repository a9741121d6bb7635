/* The CPython binding of the Metal backend: ggext._metal, a module of its own, loaded on first use, so that ggext._native
 * can be imported on any machine. The rules are module.c's; what Metal refuses is a RuntimeError. */
#include "binding.h"
#include "metal.h"

PyDoc_STRVAR(devices_doc, "devices()\n--\n\nReturn (number of devices that can be used, None or why there is none).");

static PyObject *py_devices(PyObject *module, PyObject *arguments)
{
    (void)module;
    return ggext_devices_entry(arguments, ggext_metal_devices);
}

PyDoc_STRVAR(rotate_doc, "rotate(rows, type, to, from, neox, threads, out, /)\n--\n\n"
                         "What ggext._native.rotate does, on the device, in float32; rows and out lie in host memory.");

static PyObject *py_rotate(PyObject *module, PyObject *arguments)
{
    (void)module;
    return ggext_rotate_entry(arguments, ggext_metal_rotate);
}

static PyMethodDef methods[] = {
    {"devices", py_devices, METH_VARARGS, devices_doc},
    {"rotate", py_rotate, METH_VARARGS, rotate_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ggext._metal",
    .m_doc = "Rotary position embedding on an Apple GPU; use it through ggext.native.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__metal(void)
{
    return PyModuleDef_Init(&definition);
}
