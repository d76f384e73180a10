/* greenlet.getcurrent and greenlet.switch without a call by way of objects: greenlet's C interface, whose header is not
   always installed. */
#ifndef GEVENTWS_GREENLET_H
#define GEVENTWS_GREENLET_H

#include <Python.h>

/* The places of PyGreenlet_GetCurrent and PyGreenlet_Switch, the same in each greenlet since 0.3. */
#define GEVENTWS_GET_CURRENT 4
#define GEVENTWS_SWITCH 6

static PyObject *(*geventws_get_current)(void);
static PyObject *(*geventws_switch_with)(PyObject *greenlet, PyObject *arguments, PyObject *named);

static inline int geventws_import_greenlet(void)
{
    void **interface = (void **)PyCapsule_Import("greenlet._C_API", 0);
    if (interface == NULL)
        return -1;
    geventws_get_current = (PyObject *(*)(void))interface[GEVENTWS_GET_CURRENT];
    geventws_switch_with = (PyObject *(*)(PyObject *, PyObject *, PyObject *))interface[GEVENTWS_SWITCH];
    return 0;
}

static inline PyObject *geventws_switch(PyObject *greenlet)
{
    return geventws_switch_with(greenlet, NULL, NULL);
}
#endif
