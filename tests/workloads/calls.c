/*
 * System calls that Python has no name for. Loaded by ctypes.PyDLL: errno is left to the caller,
 * and each returns -1 (or what io_uring says: minus the error).
 *
 *     gcc -O2 -Wall -Werror -shared -fPIC -o calls.so calls.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MESSAGES 64
#define BUFFER_BYTES 4096

static char buffers[MESSAGES][BUFFER_BYTES];
static struct iovec vectors[MESSAGES];
static struct mmsghdr messages[MESSAGES];

static void prepare(int number, int size, int step)
{
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < number; i++) {
		vectors[i].iov_base = buffers[i];
		vectors[i].iov_len = size + i * step;
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
}

/* Datagrams of size, size + 1, ... bytes in one call; how many were sent. */
int send_many(int fd, int number, int size)
{
	if (number > MESSAGES || size + number > BUFFER_BYTES)
		return -1;
	prepare(number, size, 1);
	return sendmmsg(fd, messages, number, 0);
}

/* That many datagrams in one call that asks for no address; their bytes. */
int receive_many(int fd, int number)
{
	int bytes = 0;

	if (number > MESSAGES)
		return -1;
	prepare(number, BUFFER_BYTES, 0);
	if (recvmmsg(fd, messages, number, 0, NULL) != number)
		return -1;
	for (int i = 0; i < number; i++)
		bytes += messages[i].msg_len;
	return bytes;
}

/* fork() with a pid of one's own choice (5.5); -1 if it is taken. */
int fork_as(int pid)
{
	pid_t wanted = pid;
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = (uint64_t)(uintptr_t)&wanted,
		.set_tid_size = 1,
	};

	return syscall(SYS_clone3, &args, sizeof(args));
}

/* One request on a ring of its own: IORING_OP_SEND or IORING_OP_RECV, no liburing. */
int ring_call(int opcode, int fd, void *buffer, unsigned int bytes, unsigned int request_flags,
	      unsigned int ring_flags)
{
	struct io_uring_params params = {.flags = ring_flags};
	unsigned int enter_flags = IORING_ENTER_GETEVENTS;
	size_t submit_bytes, complete_bytes;
	struct io_uring_sqe *requests;
	struct io_uring_cqe *answers;
	char *submitted, *completed;
	int ring = syscall(SYS_io_uring_setup, 1, &params), result = -EIO;

	if (ring < 0)
		return -errno;
	submit_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned int);
	complete_bytes = params.cq_off.cqes + params.cq_entries * sizeof(*answers);
	submitted = mmap(NULL, submit_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 ring, IORING_OFF_SQ_RING);
	completed = mmap(NULL, complete_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 ring, IORING_OFF_CQ_RING);
	requests = mmap(NULL, params.sq_entries * sizeof(*requests), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (submitted == MAP_FAILED || completed == MAP_FAILED || requests == MAP_FAILED) {
		close(ring);
		return -ENOMEM;
	}
	memset(requests, 0, sizeof(*requests));
	requests->opcode = opcode;
	requests->fd = fd;
	requests->addr = (uintptr_t)buffer;
	requests->len = bytes;
	requests->flags = request_flags;
	*(unsigned int *)(submitted + params.sq_off.array) = 0;
	__atomic_store_n((unsigned int *)(submitted + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (ring_flags & IORING_SETUP_SQPOLL)
		enter_flags |= IORING_ENTER_SQ_WAKEUP;
	if (syscall(SYS_io_uring_enter, ring, 1, 1, enter_flags, NULL, 0) >= 0) {
		answers = (struct io_uring_cqe *)(completed + params.cq_off.cqes);
		if (__atomic_load_n((unsigned int *)(completed + params.cq_off.tail), __ATOMIC_ACQUIRE))
			result = answers->res;
	}
	munmap(submitted, submit_bytes);
	munmap(completed, complete_bytes);
	munmap(requests, params.sq_entries * sizeof(*requests));
	close(ring);
	return result;
}
