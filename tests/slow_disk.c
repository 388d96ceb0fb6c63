/* A slow disk for tests, by LD_PRELOAD: each positioned write takes as long as SLOW_DISK (bytes per second) says; once
   the file SLOW_DISK_WHEN exists, where that is given. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void wait_for(size_t bytes)
{
    const char *rate = getenv("SLOW_DISK"), *when = getenv("SLOW_DISK_WHEN");
    double seconds = rate && (!when || !access(when, F_OK)) ? bytes / atof(rate) : 0;
    struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&pause, &pause)) {
    }
}

#define PWRITE(name)                                                                    \
    ssize_t name(int file, const void *content, size_t count, off64_t offset)           \
    {                                                                                   \
        ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, #name);  \
        wait_for(count);                                                                \
        return real(file, content, count, offset);                                      \
    }

#define PWRITEV(name)                                                                   \
    ssize_t name(int file, const struct iovec *parts, int count, off64_t offset)        \
    {                                                                                   \
        ssize_t (*real)(int, const struct iovec *, int, off64_t) = dlsym(RTLD_NEXT, #name); \
        size_t bytes = 0;                                                               \
        for (int i = 0; i < count; i++)                                                 \
            bytes += parts[i].iov_len;                                                  \
        wait_for(bytes);                                                                \
        return real(file, parts, count, offset);                                        \
    }

PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)
