/* Lets the n-th call that a process makes on files below a folder fail, as a file system would.
 *
 * Loaded with LD_PRELOAD. `failing_arm(folder, n, error)` starts to count (n < 0: only count),
 * `failing_calls()` returns how many there were, and `failing_name(k)` which the k-th was.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 4096 };

static char below[PATH_MAX];
static int fails_at = -1, error_number, armed, calls;
static const char *names[MOST];

void failing_arm(const char *folder, int at, int error) {
    snprintf(below, sizeof below, "%s", folder);
    fails_at = at;
    error_number = error;
    calls = 0;
    armed = 1;
}

void failing_disarm(void) { armed = 0; }
int failing_calls(void) { return calls < MOST ? calls : MOST; }
const char *failing_name(int at) { return names[at]; }

static int fails(const char *name) {
    if (calls < MOST) names[calls] = name;
    if (calls++ != fails_at) return 0;
    errno = error_number;
    return 1;
}

static int fails_for_path(const char *name, const char *path) {
    return armed && path && strncmp(path, below, strlen(below)) == 0 && fails(name);
}

static int fails_for_descriptor(const char *name, int descriptor) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails_for_path(name, path);
}

#define GENUINE(name) \
    static __typeof__(name) *genuine; \
    if (!genuine) genuine = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        GENUINE(name); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return fails_for_path("open", path) ? -1 : genuine(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define FCNTL(name) \
    int name(int descriptor, int command, ...) { \
        GENUINE(name); \
        va_list rest; va_start(rest, command); void *with = va_arg(rest, void *); va_end(rest); \
        return fails_for_descriptor("fcntl", descriptor) ? -1 : genuine(descriptor, command, with); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

#define BY_PATH(result, name, parameters, arguments) \
    result name parameters { \
        GENUINE(name); \
        return fails_for_path(#name, path) ? -1 : genuine arguments; \
    }
BY_PATH(int, access, (const char *path, int mode), (path, mode))
BY_PATH(int, faccessat, (int at, const char *path, int mode, int flags), (at, path, mode, flags))
BY_PATH(int, unlink, (const char *path), (path))
BY_PATH(int, rename, (const char *path, const char *to), (path, to))
BY_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH(int, stat, (const char *path, struct stat *found), (path, found))
BY_PATH(int, lstat, (const char *path, struct stat *found), (path, found))
BY_PATH(int, stat64, (const char *path, struct stat64 *found), (path, found))
BY_PATH(int, lstat64, (const char *path, struct stat64 *found), (path, found))

#define BY_DESCRIPTOR(result, name, parameters, arguments) \
    result name parameters { \
        GENUINE(name); \
        return fails_for_descriptor(#name, fd) ? -1 : genuine arguments; \
    }
BY_DESCRIPTOR(int, fstat, (int fd, struct stat *found), (fd, found))
BY_DESCRIPTOR(int, fstat64, (int fd, struct stat64 *found), (fd, found))
BY_DESCRIPTOR(int, flock, (int fd, int operation), (fd, operation))
BY_DESCRIPTOR(ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
BY_DESCRIPTOR(ssize_t, write, (int fd, const void *of, size_t size), (fd, of, size))
BY_DESCRIPTOR(ssize_t, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
BY_DESCRIPTOR(ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
BY_DESCRIPTOR(ssize_t, pwrite, (int fd, const void *of, size_t size, off_t at), (fd, of, size, at))
BY_DESCRIPTOR(ssize_t, pwrite64, (int fd, const void *of, size_t size, off64_t at),
              (fd, of, size, at))
BY_DESCRIPTOR(int, fchmod, (int fd, mode_t mode), (fd, mode))
BY_DESCRIPTOR(int, ftruncate, (int fd, off_t size), (fd, size))
BY_DESCRIPTOR(int, ftruncate64, (int fd, off64_t size), (fd, size))

/* Nothing here outlives a power failure, and none is tried: syncing is for nothing. */
int fsync(int fd) { return fails_for_descriptor("fsync", fd) ? -1 : 0; }
int fdatasync(int fd) { return fails_for_descriptor("fdatasync", fd) ? -1 : 0; }

int close(int fd) { /* reports the error, and the descriptor is gone all the same */
    GENUINE(close);
    int failed = fails_for_descriptor("close", fd), error = errno;
    int answer = genuine(fd);
    if (!failed) return answer;
    errno = error;
    return -1;
}
