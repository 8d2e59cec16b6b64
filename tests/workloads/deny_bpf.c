/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A kernel that refuses bpf(2) at a moment of the test's choice: to be loaded before the C library
 * (LD_PRELOAD), whose syscall() libbpf uses. Calls are counted from 0; those from `deny_from`,
 * `deny_number` of them, fail with `deny_errno`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

long deny_from, deny_number, deny_errno, bpf_calls;

long syscall(long number, ...)
{
	static long (*real)(long, ...);
	long words[6];
	va_list list;

	if (!real)
		real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		words[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_bpf) {
		long call = __atomic_fetch_add(&bpf_calls, 1, __ATOMIC_RELAXED);

		if (call >= deny_from && call < deny_from + deny_number) {
			errno = deny_errno;
			return -1;
		}
	}
	return real(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
