/* Lets User-Mode Linux run on hosts whose XSAVE area is larger than it knows.
 *
 * UML keeps 2696 bytes of extended state per thread; a host with AMX has 11008
 * and refuses PTRACE_SETREGSET of any other size (EFAULT). Preloaded, this
 * trims what UML reads and completes what it writes. The state past UML's
 * buffer is AMX tile data, which no program here uses.
 *
 * cc -O2 -shared -fPIC -o xstate_shim.so xstate_shim.c */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define ROOM 65536
typedef long (*ptrace_fn)(int, int, void *, void *);

long ptrace(enum __ptrace_request request, ...)
{
    static ptrace_fn next;
    static __thread char full[ROOM] __attribute__((aligned(64)));
    va_list args;
    va_start(args, request);
    int pid = va_arg(args, int);
    void *addr = va_arg(args, void *), *data = va_arg(args, void *);
    va_end(args);
    if (!next) next = (ptrace_fn)dlsym(RTLD_NEXT, "ptrace");
    if ((request != PTRACE_GETREGSET && request != PTRACE_SETREGSET) || (size_t)addr != NT_X86_XSTATE)
        return next(request, pid, addr, data);

    struct iovec *theirs = data, ours = {full, ROOM};
    long result = next(PTRACE_GETREGSET, pid, addr, &ours);
    if (result < 0) return result;
    size_t shared = theirs->iov_len < ours.iov_len ? theirs->iov_len : ours.iov_len;
    if (request == PTRACE_GETREGSET) {
        memcpy(theirs->iov_base, full, shared);
        theirs->iov_len = shared;
        return result;
    }
    memcpy(full, theirs->iov_base, shared);
    return next(PTRACE_SETREGSET, pid, addr, &ours);
}
