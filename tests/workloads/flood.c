/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flows by the hundred thousand, each new, counted by the one who sends them.
 *
 *   flood syn DEVICE MAC ADDRESS NUMBER   TCP SYNs to one address, each from another tuple, as frames
 *   flood udp NUMBER                      datagrams from one socket, each to another endpoint of 127/8
 *   flood churn SECONDS RATE              new flows, so many a second, half TCP and half UDP
 *
 * Says "ready", waits for a line for each round (the number is of a round; churn has one), and says
 * then what it has sent in all: packets, wire bytes. Churn says instead: flows, UDP packets, UDP wire
 * bytes, TCP payload bytes sent by the client, and received by the server's process, whose pid is last.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define IP_BYTES 20
#define TCP_BYTES 20
#define UDP_BYTES 8
#define ETHERNET_BYTES 14
#define PORTS 50021 /* a prime: addresses and ports take turns in no order */

static long sent_packets, sent_bytes;

static void put16(uint8_t *to, unsigned value)
{
	to[0] = value >> 8;
	to[1] = value;
}

static void put32(uint8_t *to, uint32_t value)
{
	put16(to, value >> 16);
	put16(to + 2, value);
}

static int wait_for_a_line(void)
{
	char line[16];

	return fgets(line, sizeof(line), stdin) != NULL;
}

static void send_all(int fd, struct mmsghdr *messages, unsigned number, unsigned more_bytes)
{
	for (unsigned at = 0; at < number;) {
		int done = sendmmsg(fd, messages + at, number - at, 0);

		if (done < 0 && (errno == ENOBUFS || errno == EINTR))
			continue;
		if (done < 0)
			err(1, "sendmmsg");
		for (int i = 0; i < done; i++, at++) {
			sent_packets++;
			sent_bytes += messages[at].msg_len + more_bytes;
		}
	}
}

static unsigned ip_checksum(const uint8_t *header)
{
	uint32_t sum = 0;

	for (int i = 0; i < IP_BYTES; i += 2)
		sum += header[i] << 8 | header[i + 1];
	sum = (sum >> 16) + (sum & 0xffff);
	return ~(sum + (sum >> 16)) & 0xffff;
}

static void syn(const char *device, const char *mac, const char *address, long number)
{
	static uint8_t frames[BATCH][ETHERNET_BYTES + IP_BYTES + TCP_BYTES];
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(device)};
	struct mmsghdr messages[BATCH] = {};
	struct iovec pieces[BATCH];
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	struct in_addr to;
	long flow = 0;

	if (fd < 0 || bind(fd, (void *)&at, sizeof(at)) || !inet_aton(address, &to))
		err(1, "%s", device);
	for (int i = 0; i < BATCH; i++) {
		uint8_t *ip = frames[i] + ETHERNET_BYTES, *tcp = ip + IP_BYTES;

		if (sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &frames[i][0], &frames[i][1],
			   &frames[i][2], &frames[i][3], &frames[i][4], &frames[i][5]) != 6)
			errx(1, "%s", mac);
		put16(frames[i] + 12, 0x0800);
		ip[0] = 0x45;
		put16(ip + 2, IP_BYTES + TCP_BYTES);
		ip[8] = 64;
		ip[9] = IPPROTO_TCP;
		memcpy(ip + 16, &to, 4);
		tcp[12] = TCP_BYTES / 4 << 4;
		tcp[13] = 0x02;
		pieces[i] = (struct iovec){frames[i], sizeof(frames[i])};
		messages[i].msg_hdr.msg_iov = &pieces[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	puts("ready");
	while (wait_for_a_line()) {
		for (long left = number; left;) {
			unsigned batch = left < BATCH ? left : BATCH;

			for (unsigned i = 0; i < batch; i++, flow++) {
				uint8_t *ip = frames[i] + ETHERNET_BYTES;

				put32(ip + 12, 0x0b000001 + flow / PORTS); /* 11.0.0.1 and on */
				put16(ip + 10, 0);
				put16(ip + 10, ip_checksum(ip));
				put16(ip + IP_BYTES, 1024 + flow % PORTS);
				put16(ip + IP_BYTES + 2, 1 + flow % 1021);
			}
			send_all(fd, messages, batch, -ETHERNET_BYTES);
			left -= batch;
		}
		printf("%ld %ld\n", sent_packets, sent_bytes);
	}
}

static void udp(long number)
{
	static uint8_t payload[11];
	struct sockaddr_in to[BATCH];
	struct mmsghdr messages[BATCH] = {};
	struct iovec piece = {payload, sizeof(payload)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	long flow = 0;

	if (fd < 0)
		err(1, "socket");
	for (int i = 0; i < BATCH; i++) {
		to[i] = (struct sockaddr_in){.sin_family = AF_INET};
		messages[i].msg_hdr.msg_name = &to[i];
		messages[i].msg_hdr.msg_namelen = sizeof(to[i]);
		messages[i].msg_hdr.msg_iov = &piece;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	puts("ready");
	while (wait_for_a_line()) {
		for (long left = number; left;) {
			unsigned batch = left < BATCH ? left : BATCH;

			for (unsigned i = 0; i < batch; i++, flow++) {
				to[i].sin_addr.s_addr = htonl(0x7f010001 + flow / PORTS);
				to[i].sin_port = htons(1024 + flow % PORTS);
			}
			send_all(fd, messages, batch, IP_BYTES + UDP_BYTES);
			left -= batch;
		}
		printf("%ld %ld\n", sent_packets, sent_bytes);
	}
}

static struct sockaddr_in server;

/* Reads each connection to its end. */
static void serve(int listener, int tell)
{
	long received = 0;
	char bytes[512];

	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t got;

		if (fd < 0)
			err(1, "accept");
		ssize_t of_this = 0;
		while ((got = read(fd, bytes, sizeof(bytes))) > 0)
			of_this += got;
		received += of_this;
		close(fd);
		if (!of_this) /* the last one says nothing */
			break;
	}
	if (write(tell, &received, sizeof(received)) != sizeof(received))
		err(1, "write");
}

static int connect_to(uint32_t address)
{
	struct sockaddr_in to = server;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	to.sin_addr.s_addr = htonl(address);
	if (fd < 0 || connect(fd, (void *)&to, sizeof(to)))
		err(1, "connect");
	return fd;
}

static void churn(double seconds, long rate)
{
	static uint8_t payload[101];
	int listener = socket(AF_INET, SOCK_STREAM, 0), told[2];
	socklen_t length = sizeof(server);
	long flows, tcp_bytes = 0, received = 0;
	struct timespec due;
	pid_t child;

	server = (struct sockaddr_in){.sin_family = AF_INET};
	if (bind(listener, (void *)&server, sizeof(server)) || listen(listener, 4096) ||
	    getsockname(listener, (void *)&server, &length) || pipe(told))
		err(1, "server");
	child = fork();
	if (!child) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL))
			err(1, "prctl");
		serve(listener, told[1]);
		_exit(0);
	}
	close(listener);
	puts("ready");
	if (!wait_for_a_line())
		return;
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (flows = 0; flows < seconds * rate; flows++) {
		uint32_t address = 0x7f000001 + flows % 199;

		if (flows % 2) {
			int fd = connect_to(address);

			if (write(fd, payload, sizeof(payload)) != sizeof(payload))
				err(1, "write");
			tcp_bytes += sizeof(payload);
			close(fd);
		} else {
			/* Nobody is there; what comes back is dropped. */
			struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
			int fd = socket(AF_INET, SOCK_DGRAM, 0);

			to.sin_addr.s_addr = htonl(address);
			if (sendto(fd, payload, sizeof(payload), 0, (void *)&to, sizeof(to)) < 0)
				err(1, "sendto");
			sent_packets++;
			sent_bytes += sizeof(payload) + IP_BYTES + UDP_BYTES;
			close(fd);
		}
		due.tv_nsec += 1000000000 / rate;
		if (due.tv_nsec >= 1000000000) {
			due.tv_nsec -= 1000000000;
			due.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
	close(connect_to(0x7f000001));
	if (read(told[0], &received, sizeof(received)) != sizeof(received))
		err(1, "read");
	printf("%ld %ld %ld %ld %ld %d\n", flows, sent_packets, sent_bytes, tcp_bytes, received, child);
	wait_for_a_line();
	waitpid(child, NULL, 0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 6 && !strcmp(argv[1], "syn"))
		syn(argv[2], argv[3], argv[4], atol(argv[5]));
	else if (argc == 3 && !strcmp(argv[1], "udp"))
		udp(atol(argv[2]));
	else if (argc == 4 && !strcmp(argv[1], "churn"))
		churn(atof(argv[2]), atol(argv[3]));
	else
		errx(2, "usage: flood syn DEVICE MAC ADDRESS NUMBER | udp NUMBER | churn SECONDS RATE");
	return 0;
}
