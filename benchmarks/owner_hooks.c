/* What owner_hooks.py times: each operation in a loop, over loopback, in one process. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BYTES 64
#define BACKLOG 16
#define BATCH 64 /* datagrams that a queue takes: each is delivered, none dropped */

static int here, there; /* sockets: of the sender; of the receiver, or the listener */
static struct sockaddr_in address;
static char buffer[BYTES];

static void must(ssize_t result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

static int open_socket(int type)
{
	int descriptor = socket(AF_INET, type, 0);

	must(descriptor, "socket");
	return descriptor;
}

static void open_receiver(int type)
{
	socklen_t size = sizeof(address);

	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	there = open_socket(type);
	must(bind(there, (struct sockaddr *)&address, size), "bind");
	must(getsockname(there, (struct sockaddr *)&address, &size), "getsockname");
	if (type == SOCK_STREAM)
		must(listen(there, BACKLOG), "listen");
}

static int connect_there(int type)
{
	int descriptor = open_socket(type);

	must(connect(descriptor, (struct sockaddr *)&address, sizeof(address)), "connect");
	return descriptor;
}

static int accept_here(void)
{
	int descriptor = accept(there, NULL, NULL);

	must(descriptor, "accept");
	return descriptor;
}

static void open_unconnected(void)
{
	open_receiver(SOCK_DGRAM);
	here = open_socket(SOCK_DGRAM);
}

static void open_connected(void)
{
	open_receiver(SOCK_DGRAM);
	here = connect_there(SOCK_DGRAM);
}

static void open_connection(void)
{
	int listener, on = 1;

	open_receiver(SOCK_STREAM);
	listener = there;
	here = connect_there(SOCK_STREAM);
	there = accept_here();
	must(setsockopt(here, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), "TCP_NODELAY");
	must(close(listener), "close");
}

static void open_listener(void)
{
	open_receiver(SOCK_STREAM);
}

static void send_unconnected(void)
{
	must(sendto(here, buffer, BYTES, 0, (struct sockaddr *)&address, sizeof(address)), "sendto");
}

static void send_connected(void)
{
	must(send(here, buffer, BYTES, 0), "send");
}

static void take_from(int flags)
{
	struct sockaddr_in from;
	socklen_t size = sizeof(from);

	must(recvfrom(there, buffer, BYTES, flags, (struct sockaddr *)&from, &size), "recvfrom");
}

/* Not timed. */
static void empty_the_queue(void)
{
	for (int i = 0; i < BATCH; i++)
		take_from(MSG_DONTWAIT);
}

static void send_and_receive(void)
{
	must(send(here, buffer, BYTES, 0), "send");
	must(recv(there, buffer, BYTES, 0), "recv");
}

static void send_and_receive_from(void)
{
	must(send(here, buffer, BYTES, 0), "send");
	take_from(0);
}

static void connect_accept_close(void)
{
	int client = connect_there(SOCK_STREAM), server = accept_here();

	must(close(client), "close");
	must(close(server), "close");
}

static const struct operation {
	const char *name;
	void (*open)(void);
	void (*once)(void);
	void (*after_a_batch)(void);
} operations[] = {
	{"udp-sendto", open_unconnected, send_unconnected, empty_the_queue},
	{"udp-send", open_connected, send_connected, empty_the_queue},
	{"udp-send-recv", open_connected, send_and_receive, NULL},
	{"udp-send-recvfrom", open_connected, send_and_receive_from, NULL},
	{"tcp-send-recv", open_connection, send_and_receive, NULL},
	{"tcp-connect-accept-close", open_listener, connect_accept_close, NULL},
};

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

static double time_ns(const struct operation *operation, int batches)
{
	double spent_ns = 0;

	for (int i = 0; i < batches; i++) {
		double started_ns = now_ns();

		for (int each = 0; each < BATCH; each++)
			operation->once();
		spent_ns += now_ns() - started_ns;
		if (operation->after_a_batch)
			operation->after_a_batch();
	}
	return spent_ns / batches / BATCH;
}

/* Prints the nanoseconds that one operation took, a line for each of `blocks` of `batches`. */
int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: %s OPERATION BLOCKS BATCHES", argv[0]);
	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
		const struct operation *operation = &operations[i];
		int blocks = atoi(argv[2]), batches = atoi(argv[3]);

		if (strcmp(operation->name, argv[1]))
			continue;
		operation->open();
		time_ns(operation, batches); /* to warm up */
		for (int block = 0; block < blocks; block++)
			printf("%.1f\n", time_ns(operation, batches));
		return 0;
	}
	errx(2, "no such operation: %s", argv[1]);
}
