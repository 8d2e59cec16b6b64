/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that live for a millisecond and send a few bytes each.
 *
 *     short_lived udp|tcp COUNT BYTES PORT [ADDRESS]
 *
 * vforks and executes itself COUNT times, one after the other; each child sends BYTES bytes, in one
 * datagram or by a connection, to PORT of ADDRESS (127.0.0.1, or any IPv4 or IPv6 address) and ends.
 * PORT 0: the launcher binds a port of its own to send to, so that nothing is refused, and accepts;
 * the first line says which.
 *
 * For each child a line, told by the child itself and by its parent, not by any tool under test:
 *
 *     PID START_TICKS LOCAL_PORT BYTES_SENT LIFETIME_US
 *
 * START_TICKS is field 22 of /proc/PID/stat, read before the child is reaped. The first line is
 * "port PORT". The children have the name of the file; the launcher calls itself launcher.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TOLD_FD 9

struct told {
	int port;
	int sent;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static socklen_t parse_address(const char *text, int port, struct sockaddr_storage *to)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1) {
		fprintf(stderr, "short_lived: no address: %s\n", text);
		exit(2);
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	return sizeof(*v6);
}

static int port_of(int fd)
{
	struct sockaddr_storage own;
	socklen_t length = sizeof(own);

	if (getsockname(fd, (struct sockaddr *)&own, &length))
		return -1;
	/* sin_port and sin6_port are in the same place */
	return ntohs(((struct sockaddr_in *)&own)->sin_port);
}

static int send_once(int type, int bytes, int port, const char *address)
{
	static char payload[65536];
	struct sockaddr_storage to;
	socklen_t length = parse_address(address, port, &to);
	int fd = socket(to.ss_family, type, 0);
	struct told told;

	if (type == SOCK_STREAM && connect(fd, (struct sockaddr *)&to, length))
		die("connect");
	told.sent = type == SOCK_STREAM ? write(fd, payload, bytes)
					: sendto(fd, payload, bytes, 0, (struct sockaddr *)&to, length);
	told.port = port_of(fd);
	return write(TOLD_FD, &told, sizeof(told)) == sizeof(told) ? 0 : 1;
}

static unsigned long long start_ticks(pid_t pid)
{
	unsigned long long ticks = 0;
	char path[64], text[1024], *rest;
	int fd, length, field;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY);
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (length <= 0)
		die(path);
	text[length] = 0;
	/* After the name, which may have spaces and parentheses, comes field 3. */
	rest = strrchr(text, ')') + 1;
	for (field = 2; field < 22; field++)
		rest = strchr(rest + (field > 2), ' ');
	sscanf(rest, "%llu", &ticks);
	return ticks;
}

/* Its end comes with its last byte: the child is gone. */
static void take_connection(int listener)
{
	char bytes[65536];
	int fd = accept(listener, NULL, NULL);

	if (fd < 0)
		die("accept");
	while (read(fd, bytes, sizeof(bytes)) > 0)
		;
	close(fd);
}

static void launch(char *self, char **arguments, int told_fd)
{
	const long long begun = now_us();
	long long lifetime_us;
	struct told told;
	siginfo_t info;
	pid_t pid = vfork();

	if (pid == 0) {
		execv(self, arguments);
		_exit(127);
	}
	/* WNOWAIT: it stays a zombie, whose /proc/PID/stat is still there. */
	if (pid < 0 || waitid(P_PID, pid, &info, WEXITED | WNOWAIT))
		die("vfork");
	lifetime_us = now_us() - begun;
	if (read(told_fd, &told, sizeof(told)) != sizeof(told)) {
		fprintf(stderr, "short_lived: a child said nothing\n");
		exit(1);
	}
	printf("%d %llu %d %d %lld\n", pid, start_ticks(pid), told.port, told.sent, lifetime_us);
	waitpid(pid, NULL, 0);
}

static int own_sink(int type, const char *address)
{
	struct sockaddr_storage at;
	socklen_t length = parse_address(address, 0, &at);
	int fd = socket(at.ss_family, type | SOCK_CLOEXEC, 0);

	if (bind(fd, (struct sockaddr *)&at, length) || (type == SOCK_STREAM && listen(fd, 64)))
		die("bind");
	return fd;
}

int main(int argc, char **argv)
{
	char *address = argc > 5 ? argv[5] : "127.0.0.1";
	char self[4096], port_text[16];
	int type, count, port, ends[2], sink = -1;
	ssize_t length;

	if (argc < 5 || argc > 6) {
		fprintf(stderr, "usage: short_lived udp|tcp COUNT BYTES PORT [ADDRESS]\n");
		return 2;
	}
	type = strcmp(argv[1], "tcp") ? SOCK_DGRAM : SOCK_STREAM;
	count = atoi(argv[2]);
	port = atoi(argv[4]);
	if (count == 0)
		return send_once(type, atoi(argv[3]), port, address);

	prctl(PR_SET_NAME, "launcher");
	length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (length < 0 || pipe(ends) || dup2(ends[1], TOLD_FD) < 0)
		die("pipe");
	self[length] = 0;
	if (port == 0) {
		sink = own_sink(type, address);
		port = port_of(sink);
	}
	snprintf(port_text, sizeof(port_text), "%d", port);
	printf("port %d\n", port);
	/* COUNT 0 is the sender. */
	char *sender[] = {self, argv[1], "0", argv[3], port_text, address, NULL};
	while (count-- > 0) {
		launch(self, sender, ends[0]);
		if (sink >= 0 && type == SOCK_STREAM)
			take_connection(sink);
	}
	return 0;
}
