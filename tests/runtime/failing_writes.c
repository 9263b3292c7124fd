// Lets the n-th call that writes fail, as on a full disk, or all that sync: preloaded by failing_process.py and
// failed_commit.py. Writes to the first three files (the test's own pipes) do not count.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls = 0, first = 0, last = 0;
static int syncs_fail = 0;

void fail_from(long n, int once) { calls = 0, first = n, last = once ? n : 1L << 60; }
void fail_syncs(int yes) { syncs_fail = yes; }
long calls_made(void) { return calls; }

static int fails(int fd) {
    if (fd < 3) return 0;
    calls++;
    if (first == 0 || calls < first || calls > last) return 0;
    errno = ENOSPC;
    return 1;
}

static int sync_fails(int fd) {
    if (syncs_fail) errno = EIO;
    return fails(fd) || syncs_fail;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void* data, size_t n) { return fails(fd) ? -1 : NEXT(write)(fd, data, n); }
ssize_t writev(int fd, const struct iovec* parts, int n) { return fails(fd) ? -1 : NEXT(writev)(fd, parts, n); }
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) { return fails(fd) ? -1 : NEXT(pwrite)(fd, data, n, at); }
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t at) {
    return fails(fd) ? -1 : NEXT(pwrite64)(fd, data, n, at);
}
int fsync(int fd) { return sync_fails(fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return sync_fails(fd) ? -1 : NEXT(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return fails(fd) ? -1 : NEXT(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails(fd) ? -1 : NEXT(ftruncate64)(fd, size); }
int rename(const char* from, const char* to) { return fails(3) ? -1 : NEXT(rename)(from, to); }
