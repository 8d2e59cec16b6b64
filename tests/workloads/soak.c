/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mixed load that can go on for hours and knows at each moment what it has moved.
 *
 *     soak            in a network namespace of its own, where lo is up
 *
 * Every 10 ms: two TCP connections, each from a request to an answer; five datagrams; a piece of each
 * of three streams. Every 20 ms a process that sends one datagram and ends. Each kind is a process
 * with a name of its own.
 *
 * Says "ready" and waits for lines. "go" begins, "pause" stops and waits until all that was sent has
 * been received; then a line of KIND SENT RECEIVED, payload bytes, for each kind, with the number of
 * connections and of processes last. Ends with its standard input.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS 10000000L
#define STREAMS 3
#define STREAM_BYTES 20011
#define SOCKETS 8
#define DATAGRAMS 5
#define CONNECTIONS 2
#define ANSWER_BYTES 503
#define SHORT_BYTES 107
#define TICKS_OF_SHORT 2
#define LARGEST 65536

enum kind { CLIENT, SERVER, SENDER, TAKER, STREAM, SINK, SHORT, KINDS };

static const char *const names[KINDS] = {"soak-client", "soak-server", "soak-sender", "soak-taker",
					 "soak-stream", "soak-sink", "soak-short"};

struct counts {
	atomic_long sent[KINDS], received[KINDS], connections, processes;
	atomic_bool running, rests[KINDS];
};

static struct counts *counts;
static char payload[LARGEST];

static int listening(struct sockaddr_in *at, int type)
{
	socklen_t length = sizeof(*at);
	int fd = socket(AF_INET, type, 0), room = 4 << 20;

	*at = (struct sockaddr_in){.sin_family = AF_INET};
	at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) ||
	    bind(fd, (void *)at, sizeof(*at)) || getsockname(fd, (void *)at, &length) ||
	    (type == SOCK_STREAM && listen(fd, 4096)))
		err(1, "server");
	return fd;
}

static int connected(const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (void *)to, sizeof(*to)))
		err(1, "connect");
	return fd;
}

static void write_all(int fd, long size, enum kind kind)
{
	while (size) {
		long part = write(fd, payload, size);

		if (part < 0)
			err(1, "%s: write", names[kind]);
		size -= part;
		counts->sent[kind] += part;
	}
}

static void read_all(int fd, enum kind kind)
{
	long part;

	while ((part = read(fd, payload, sizeof(payload))) > 0)
		counts->received[kind] += part;
	if (part < 0)
		err(1, "%s: read", names[kind]);
}

static void be(enum kind kind)
{
	if (prctl(PR_SET_NAME, names[kind]) || prctl(PR_SET_PDEATHSIG, SIGKILL))
		err(1, "prctl");
}

/* Waits for the next tick; one that is a second late is forgotten. */
static void wait_for_tick(struct timespec *due, enum kind kind)
{
	struct timespec now;

	due->tv_nsec += TICK_NS;
	if (due->tv_nsec >= 1000000000) {
		due->tv_nsec -= 1000000000;
		due->tv_sec++;
	}
	do {
		counts->rests[kind] = !counts->running;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, due, NULL);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (!counts->running || now.tv_sec - due->tv_sec > 1) {
			*due = now;
			due->tv_nsec = now.tv_nsec < 1000000000 - TICK_NS ? now.tv_nsec + TICK_NS : 0;
		}
	} while (!counts->running);
	counts->rests[kind] = false;
}

static void open_connections(const struct sockaddr_in *to)
{
	static long number;

	for (int n = 0; n < CONNECTIONS; n++) {
		int fd = connected(to);

		write_all(fd, 101 + number++ % 7919, CLIENT);
		shutdown(fd, SHUT_WR);
		read_all(fd, CLIENT);
		close(fd);
		counts->connections++;
	}
}

static void answer_connections(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			err(1, "accept");
		read_all(fd, SERVER);
		write_all(fd, ANSWER_BYTES, SERVER);
		close(fd);
	}
}

static void send_datagrams(const struct sockaddr_in *to)
{
	static int sockets[SOCKETS];
	static long number;

	for (int n = 0; n < DATAGRAMS; n++, number++) {
		int *fd = &sockets[number % SOCKETS];
		long size = 1 + number % 1399;

		if (!*fd)
			*fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (sendto(*fd, payload, size, 0, (void *)to, sizeof(*to)) != size)
			err(1, "sendto");
		counts->sent[SENDER] += size;
	}
}

static void take_datagrams(int fd)
{
	struct sockaddr_in from;

	for (;;) {
		socklen_t length = sizeof(from);
		long part = recvfrom(fd, payload, sizeof(payload), 0, (void *)&from, &length);

		if (part < 0)
			err(1, "recvfrom");
		counts->received[TAKER] += part;
	}
}

static void feed_streams(const struct sockaddr_in *to)
{
	static int sockets[STREAMS];

	for (int n = 0; n < STREAMS; n++) {
		if (!sockets[n])
			sockets[n] = connected(to);
		write_all(sockets[n], STREAM_BYTES, STREAM);
	}
}

static void drain_streams(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			err(1, "accept");
		if (!fork()) {
			be(SINK);
			read_all(fd, SINK);
			_exit(0);
		}
		close(fd);
	}
}

/* Each is a program of its own: this one, executed anew. */
static void start_short(const struct sockaddr_in *to)
{
	static int tick;
	char port[16];
	int status;
	pid_t child;

	if (tick++ % TICKS_OF_SHORT)
		return;
	snprintf(port, sizeof(port), "%d", ntohs(to->sin_port));
	child = vfork();
	if (!child) {
		execl("/proc/self/exe", "soak-short", port, NULL);
		_exit(1);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		err(1, "a short-lived process");
	counts->sent[SHORT] += SHORT_BYTES;
	counts->processes++;
}

static int send_one(int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd;

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	prctl(PR_SET_NAME, names[SHORT]);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	return sendto(fd, payload, SHORT_BYTES, 0, (void *)&to, sizeof(to)) != SHORT_BYTES;
}

static void serve(enum kind kind, void (*work)(int), int fd)
{
	if (!fork()) {
		be(kind);
		work(fd);
	}
	close(fd);
}

static void generate(enum kind kind, void (*work)(const struct sockaddr_in *),
		     const struct sockaddr_in *to)
{
	struct timespec due;

	if (fork())
		return;
	be(kind);
	if (kind == SHORT)
		prctl(PR_SET_NAME, "soak-launcher");
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		wait_for_tick(&due, kind);
		work(to);
	}
}

static bool is_at_rest(void)
{
	return counts->rests[CLIENT] && counts->rests[SENDER] && counts->rests[STREAM] &&
	       counts->rests[SHORT] && counts->sent[CLIENT] == counts->received[SERVER] &&
	       counts->sent[SERVER] == counts->received[CLIENT] &&
	       counts->sent[SENDER] + counts->sent[SHORT] == counts->received[TAKER] &&
	       counts->sent[STREAM] == counts->received[SINK];
}

static void tell(void)
{
	counts->running = false;
	while (!is_at_rest())
		usleep(1000);
	for (int kind = 0; kind < KINDS; kind++)
		printf("%s %ld %ld ", names[kind], counts->sent[kind], counts->received[kind]);
	printf("%ld %ld\n", counts->connections, counts->processes);
}

int main(int argc, char **argv)
{
	struct sockaddr_in answers, datagrams, streams;
	char line[16];

	if (argc == 2)
		return send_one(atoi(argv[1]));
	if (!strcmp(argv[0], "soak-short"))
		errx(2, "no port");
	setvbuf(stdout, NULL, _IOLBF, 0);
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED)
		err(1, "mmap");
	/* One after the other: nobody shall hold another's socket. */
	serve(SERVER, answer_connections, listening(&answers, SOCK_STREAM));
	serve(TAKER, take_datagrams, listening(&datagrams, SOCK_DGRAM));
	serve(SINK, drain_streams, listening(&streams, SOCK_STREAM));
	generate(CLIENT, open_connections, &answers);
	generate(SENDER, send_datagrams, &datagrams);
	generate(STREAM, feed_streams, &streams);
	generate(SHORT, start_short, &datagrams);
	puts("ready");
	while (fgets(line, sizeof(line), stdin))
		if (!strcmp(line, "go\n"))
			counts->running = true;
		else
			tell();
	return 0;
}
