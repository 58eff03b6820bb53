/*
 * library.c - shared libraries that only some runs need.
 *
 * cuBLASLt alone takes 200 MB and a tenth of a second of whoever links it: a run on the CPU, or one
 * GPU without others, should not pay for that, nor ask for the file.
 */
#include "base/base.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

static kd_status load(kd_library *library)
{
    /* Never closed: the CUDA runtime keeps pointers into what it registered. */
    void *const handle = dlopen(library->file, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return kd_fail(KD_EDEVICE, "%s (LD_LIBRARY_PATH may name its folder)", dlerror());
    for (int i = 0; i < library->count; i++) {
        void *const function = dlsym(handle, library->functions[i]);
        if (!function) return kd_fail(KD_EDEVICE, "%s: %s", library->file, dlerror());
        memcpy((char *)library->table + (size_t)i * sizeof function, &function, sizeof function);
    }
    library->loaded = true;
    return KD_OK;
}

kd_status kd_library_load(kd_library *library)
{
    pthread_mutex_lock(&loading);
    const kd_status status = library->loaded ? KD_OK : load(library);
    pthread_mutex_unlock(&loading);
    return status;
}
