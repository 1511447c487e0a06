/* Lets an emulated kernel of Debian 12 run on processors with AMX, whose registers it has no room for.
 *
 * Linux takes a process's registers back (PTRACE_SETREGSET) only whole, 11,008 bytes with AMX; User-Mode Linux 6.1 knows
 * 2,696 of them and gives up. Loaded before it (LD_PRELOAD), this adds the others as they are after a reset: no process of
 * the emulated machine has ever used them, because nobody in it can ask for the permission that Linux wants first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*next)(enum __ptrace_request, pid_t, void *, void *);
static unsigned char state[1 << 16];
static size_t whole_bytes;

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (!next)
        next = (long (*)(enum __ptrace_request, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
    if (request != PTRACE_SETREGSET || (uintptr_t)address != NT_X86_XSTATE)
        return next(request, pid, address, data);

    const struct iovec *known = data;
    if (!whole_bytes) {
        struct iovec whole = {state, sizeof state};
        if (next(PTRACE_GETREGSET, pid, address, &whole) < 0)
            return -1;
        whole_bytes = whole.iov_len;
        memset(state, 0, sizeof state);
    }
    if (known->iov_len >= whole_bytes)
        return next(request, pid, address, data);
    memcpy(state, known->iov_base, known->iov_len);
    struct iovec whole = {state, whole_bytes};
    return next(request, pid, address, &whole);
}
