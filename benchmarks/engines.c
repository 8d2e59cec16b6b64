/* The traffic of engines.py, over loopback, which counts itself. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LARGEST_DATAGRAM_BYTES 9000
#define MOST_SOCKETS 1000
#define STREAM_BYTES (128 << 10)
#define PAUSE_S 0.001
#define BETWEEN_CLOCKS 32 /* datagrams that are sent for each look at the clock */

static char buffer[STREAM_BYTES];

static void must(ssize_t result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_s(int who)
{
	struct rusage used;

	must(getrusage(who, &used), "getrusage");
	return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
	       (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static int open_socket(int type)
{
	int descriptor = socket(AF_INET, type, 0);

	must(descriptor, "socket");
	return descriptor;
}

static struct sockaddr_in bind_somewhere(int descriptor)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);

	must(bind(descriptor, (struct sockaddr *)&address, size), "bind");
	must(getsockname(descriptor, (struct sockaddr *)&address, &size), "getsockname");
	return address;
}

static void wait_until(double due_s)
{
	double pause_s = due_s - now_s();

	if (pause_s > PAUSE_S)
		usleep(pause_s * 1e6);
}

static void say(uint64_t packets, uint64_t bytes, uint64_t retransmitted_bytes, double took_s)
{
	printf("{\"packets\": %ju, \"payload_bytes\": %ju, \"retransmitted_bytes\": %ju,"
	       " \"seconds\": %.6f, \"cpu_s\": %.6f}\n",
	       (uintmax_t)packets, (uintmax_t)bytes, (uintmax_t)retransmitted_bytes, took_s,
	       cpu_s(RUSAGE_SELF) + cpu_s(RUSAGE_CHILDREN));
}

/* Each flow from a socket of its own; beyond MOST_SOCKETS from one, to addresses of 127.0.0.0/8. */
static void send_datagrams(double seconds, int bytes, unsigned flows, double packets_per_s)
{
	unsigned sockets = flows > MOST_SOCKETS ? 1 : flows;
	int there = open_socket(SOCK_DGRAM), here[MOST_SOCKETS];
	/* Datagrams arrive, though nobody reads them: once its queue is full, behind every counter. */
	struct sockaddr_in address = bind_somewhere(there);
	double started_s, spent_s = 0;
	uint64_t packets = 0;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (unsigned i = 0; i < sockets; i++) {
		here[i] = open_socket(SOCK_DGRAM);
		if (sockets == flows)
			must(connect(here[i], (struct sockaddr *)&address, sizeof(address)), "connect");
		else
			bind_somewhere(here[i]);
	}
	started_s = now_s();
	for (; spent_s < seconds; spent_s = now_s() - started_s) {
		for (int i = 0; i < BETWEEN_CLOCKS; i++, packets++) {
			if (sockets == flows) {
				must(send(here[packets % flows], buffer, bytes, 0), "send");
				continue;
			}
			address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + packets % flows);
			must(sendto(here[0], buffer, bytes, 0, (struct sockaddr *)&address, sizeof(address)),
			     "sendto");
		}
		if (packets_per_s > 0)
			wait_until(started_s + packets / packets_per_s);
	}
	say(packets, packets * bytes, 0, spent_s);
}

static void receive_stream(int listener)
{
	int descriptor = accept(listener, NULL, NULL);
	ssize_t got;

	must(descriptor, "accept");
	while ((got = recv(descriptor, buffer, sizeof(buffer), 0)) > 0)
		;
	must(got, "recv");
	_exit(0);
}

/* One connection to another process, whose end of file says that all of it arrived. */
static void send_stream(double seconds)
{
	int listener = open_socket(SOCK_STREAM), here = open_socket(SOCK_STREAM), status;
	struct sockaddr_in address = bind_somewhere(listener);
	struct tcp_info info = {};
	socklen_t size = sizeof(info);
	uint64_t bytes = 0;
	double started_s;
	pid_t reader;

	must(listen(listener, 1), "listen");
	reader = fork();
	must(reader, "fork");
	if (!reader)
		receive_stream(listener);
	must(connect(here, (struct sockaddr *)&address, sizeof(address)), "connect");
	started_s = now_s();
	while (now_s() - started_s < seconds) {
		ssize_t sent = send(here, buffer, sizeof(buffer), 0);

		must(sent, "send");
		bytes += sent;
	}
	must(shutdown(here, SHUT_WR), "shutdown");
	must(recv(here, buffer, 1, 0), "recv");
	must(getsockopt(here, IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
	if (wait(&status) != reader || status)
		errx(1, "the reader failed");
	say(info.tcpi_segs_out, bytes, info.tcpi_bytes_retrans,
	    now_s() - started_s);
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "udp") && atoi(argv[3]) <= LARGEST_DATAGRAM_BYTES)
		send_datagrams(atof(argv[2]), atoi(argv[3]), atoi(argv[4]), atof(argv[5]));
	else if (argc == 3 && !strcmp(argv[1], "tcp"))
		send_stream(atof(argv[2]));
	else
		errx(2, "usage: %s udp SECONDS BYTES FLOWS PACKETS_PER_S|0\n       %s tcp SECONDS",
		     argv[0], argv[0]);
	return 0;
}
