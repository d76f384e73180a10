/* greenlet.getcurrent without a call by way of objects: greenlet's C interface, whose header is not always installed. */
#ifndef GEVENTWS_GREENLET_H
#define GEVENTWS_GREENLET_H

#include <Python.h>

/* The place of PyGreenlet_GetCurrent, the same in each greenlet since 0.3. */
#define GEVENTWS_GET_CURRENT 4

static PyObject *(*geventws_get_current)(void);

static inline int geventws_import_greenlet(void)
{
    void **interface = (void **)PyCapsule_Import("greenlet._C_API", 0);
    if (interface == NULL)
        return -1;
    geventws_get_current = (PyObject *(*)(void))interface[GEVENTWS_GET_CURRENT];
    return 0;
}
#endif
