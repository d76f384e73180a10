/* How the process keeps freed memory, for `geventws.memory`. */
#ifndef GEVENTWS_MEMORY_H
#define GEVENTWS_MEMORY_H

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>

/* Python asks for an arena of 256 KiB or more for objects, and from 3.11 on for 16 KiB of stack for each greenlet that
   runs, or a power of two of it: 16 KiB come from malloc here, which needs no system call. What Python got before is
   aligned to a page and goes back to where it came from, so no piece of ours may be aligned so. */
#define GEVENTWS_PAGE 4096
#define GEVENTWS_SMALL 65536
#define GEVENTWS_LARGEST_BLOCK (32 * 1024 * 1024)

static PyObjectArenaAllocator geventws_arenas;

static void *geventws_allocate(void *context, size_t size)
{
    char *piece;
    if (size > GEVENTWS_SMALL)
        return geventws_arenas.alloc(geventws_arenas.ctx, size);
    piece = malloc(size);
    if (piece != NULL && (uintptr_t)piece % GEVENTWS_PAGE == 0) {
        free(piece);
        piece = NULL;
    }
    return piece != NULL ? piece : geventws_arenas.alloc(geventws_arenas.ctx, size);
}

static void geventws_free(void *context, void *piece, size_t size)
{
    if ((uintptr_t)piece % GEVENTWS_PAGE)
        free(piece);
    else
        geventws_arenas.free(geventws_arenas.ctx, piece, size);
}

/* Returns whether the C library takes the settings. */
static inline int geventws_keep_memory(int size)
{
    PyObjectArenaAllocator ours = {NULL, geventws_allocate, geventws_free};
    if (geventws_arenas.alloc == NULL) {
        PyObject_GetArenaAllocator(&geventws_arenas);
        PyObject_SetArenaAllocator(&ours);
    }
    /* Each setting ends the C library's own adapting of both. */
    return mallopt(M_MMAP_THRESHOLD, GEVENTWS_LARGEST_BLOCK) && mallopt(M_TRIM_THRESHOLD, size);
}

#else

/* The C library has its own way, which stays as it is. */
static inline int geventws_keep_memory(int size)
{
    return 0;
}

#endif
#endif
