/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How much has a socket moved? Figures that only grow, on the socket itself (SK_STORAGE), and how
 * they leave it: a record when its user changes and when it ends, a row whenever user space reads.
 *
 * Part of owners.bpf.c: whoever tells of a new user hands over what the one before has moved.
 * Without procnet_counting the verifier drops every branch that begins here, and nothing is kept.
 *
 * A record has what was moved since the beginning, not since the one before: two that are written
 * at the same time then tell the same twice, which user space sees, and nothing is lost or doubled.
 */
#ifndef PROCNET_SOCKET_COUNTS_H
#define PROCNET_SOCKET_COUNTS_H

#include "procnet.h"

/* User space may set it. */
const volatile __u32 procnet_counting SEC(".rodata.counting") = 0;

struct procnet_sum {
	__u64 packets;
	__u64 wire_bytes;
	__u64 payload_bytes;
};

struct procnet_moved {
	struct procnet_sum sum;
	__u64 last_ns; /* CLOCK_MONOTONIC_COARSE: a fifth of the time of any other clock */
};

/* Of a socket and the tuple of its first packet. */
struct procnet_figures {
	struct procnet_tuple tuple;
	__u64 socket;   /* never used twice; 0 while the rest is being written */
	__u64 since_ns; /* of the first packet, or of the last change of hands; CLOCK_BOOTTIME */
	struct procnet_moved sent;
	struct procnet_moved received;
	struct procnet_sum sent_read; /* what user space has read of it */
	struct procnet_sum received_read;
	__u32 netns;
	__u32 flags; /* enum procnet_figures_flag */
};

enum procnet_figures_flag {
	FIGURES_REST = 1, /* of remote ends that were too many; the tuple has none */
	FIGURES_OPEN = 2, /* the first packet was a SYN of its own */
	FIGURES_PLAIN = 4, /* UDP over IPv4 */
};

struct procnet_counters {
	struct procnet_figures is;
	struct procnet_sum sent_told; /* in a record or a row */
	struct procnet_sum received_told;
	__u32 turn; /* how often it has changed hands */
	__u32 ended; /* enum procnet_end */
	__u32 connections; /* that the socket has had before */
	__u32 has_connection;
	struct procnet_connection connection; /* what is kept in `connections` by who does not count */
};

enum procnet_end {
	NOT_ENDED = 0,
	ENDED = 1,
	ENDED_UNTOLD = 2, /* its record found no room */
};

/* What leaves. */
struct procnet_socket_record {
	__u16 layout; /* PROCNET_LAYOUT */
	__u16 pad[3];
	__u64 time_ns;
	struct procnet_figures figures;
};

/* A remote end of a socket that has several. */
struct procnet_remote_key {
	struct procnet_tuple tuple;
	__u64 socket;
	__u32 turn;
	__u32 netns;
};

struct procnet_remote_value {
	__u64 first_ns;
	__u64 opens; /* the first packet is a TCP SYN without ACK */
	struct procnet_moved sent;
	struct procnet_moved received;
};

_Static_assert(sizeof(struct procnet_socket_record) == 192, "size of procnet_socket_record");
_Static_assert(sizeof(struct procnet_remote_key) == 56, "size of procnet_remote_key");
_Static_assert(sizeof(struct procnet_remote_value) == 80, "size of procnet_remote_value");

/* For user space to compare with its mirrors before it reads a record. */
const struct {
	__u32 layout;
	__u32 record_bytes;
	__u32 key_bytes;
	__u32 value_bytes;
} procnet_counts_contract SEC(".rodata.counts") = {
	PROCNET_LAYOUT,
	sizeof(struct procnet_socket_record),
	sizeof(struct procnet_remote_key),
	sizeof(struct procnet_remote_value),
};

#define COUNTS_RING_BYTES (8 << 20) /* 41,000 records */
#define REMOTES 65536

struct procnet_counters_map {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct procnet_counters);
} counters SEC(".maps"),
	/* What found no room among the remote ends; few sockets have that. */
	rests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, COUNTS_RING_BYTES);
} counts SEC(".maps");

/* One is written, the other empty or being read: see count.bpf.c. */
struct procnet_remotes {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REMOTES);
	__type(key, struct procnet_remote_key);
	__type(value, struct procnet_remote_value);
} first_remotes SEC(".maps"), second_remotes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct procnet_remotes);
} remotes SEC(".maps") = {
	.values = {[0] = (void *)&first_remotes},
};

/* User space maps it, and clears what is news. */
struct procnet_socket_news {
	__u64 has_moved;   /* a socket has */
	__u64 remotes;     /* entries in the table that is written, about */
	__u64 unsplit_packets; /* of sockets that had too many of them */
	struct procnet_sum sent_untold; /* by sockets of whose end nobody could be told */
	struct procnet_sum received_untold;
} procnet_news SEC(".data.news");

/* Of two that make it at the same time, one is refused; then it is there. */
#define MADE_STORAGE(map, sk, first)                                                               \
	(bpf_sk_storage_get(&(map), sk, first, BPF_SK_STORAGE_GET_F_CREATE)                        \
		 ?: bpf_sk_storage_get(&(map), sk, NULL, 0))

/* The packets last: whoever reads meanwhile looks at them to see whether there is more to tell. */
static __always_inline void add_sum(struct procnet_sum *to, const struct procnet_sum *more)
{
	__sync_fetch_and_add(&to->payload_bytes, more->payload_bytes);
	__sync_fetch_and_add(&to->wire_bytes, more->wire_bytes);
	__sync_fetch_and_add(&to->packets, more->packets);
}

static __always_inline void add_difference(struct procnet_sum *to, const struct procnet_sum *now,
					   const struct procnet_sum *before)
{
	struct procnet_sum more = {
		now->packets - before->packets,
		now->wire_bytes - before->wire_bytes,
		now->payload_bytes - before->payload_bytes,
	};

	add_sum(to, &more);
}

/* Read before it is written: it is set already, and all CPUs have the line. */
static __always_inline void set_news(__u64 *flag)
{
	if (!*(volatile __u64 *)flag)
		*(volatile __u64 *)flag = 1;
}

/* To make room on a socket and to clear it away is dear: there is one place for both. */
static __always_inline struct procnet_connection *connection_of(void *sk)
{
	struct procnet_counters *of;

	if (!procnet_counting)
		return bpf_sk_storage_get(&connections, sk, NULL, 0);
	of = bpf_sk_storage_get(&counters, sk, NULL, 0);
	return of && of->has_connection ? &of->connection : NULL;
}

static __always_inline struct procnet_connection *create_connection(void *sk)
{
	struct procnet_counters *of;

	if (!procnet_counting)
		return bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	of = MADE_STORAGE(counters, sk, NULL);
	if (!of)
		return NULL;
	of->has_connection = true;
	return &of->connection;
}

/* False if the ring is full: the next one, or the next row, has it too. */
static __noinline bool tell_counters(struct procnet_counters *of)
{
	struct procnet_socket_record *record;

	if (!of)
		return false;
	if (of->is.sent.sum.packets == of->sent_told.packets &&
	    of->is.received.sum.packets == of->received_told.packets)
		return true;
	record = bpf_ringbuf_reserve(&counts, sizeof(*record), 0);
	if (!record)
		return false;
	record->layout = PROCNET_LAYOUT;
	record->pad[0] = record->pad[1] = record->pad[2] = 0;
	record->time_ns = bpf_ktime_get_boot_ns();
	record->figures = of->is;
	of->sent_told = record->figures.sent.sum;
	of->received_told = record->figures.received.sum;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP); /* nobody waits for it */
	return true;
}

/* What it has moved with one remote end, or with all that had no room. */
static __always_inline struct procnet_counters *counters_of(void *sk, bool rest)
{
	if (!procnet_counting || (rest && !procnet_news.unsplit_packets))
		return NULL;
	return rest ? bpf_sk_storage_get(&rests, sk, NULL, 0)
		    : bpf_sk_storage_get(&counters, sk, NULL, 0);
}

static __always_inline void split(struct procnet_counters *of)
{
	if (!of)
		return;
	__sync_fetch_and_add(&of->turn, 1);
	if (tell_counters(of))
		of->is.since_ns = bpf_ktime_get_boot_ns();
}

/* The socket has a new user: what it has moved until now is not the new one's. */
static __always_inline void split_counts(void *sk)
{
	split(counters_of(sk, false));
	split(counters_of(sk, true));
}

/*
 * The last record. A packet that is on its way through another CPU may still come: whoever counts
 * it looks at `ended` after adding, as we look at the sums after setting it, both behind an atomic
 * operation, and so one of the two has it all.
 */
static __always_inline void end_of(struct procnet_counters *of)
{
	if (!of || of->ended)
		return;
	__sync_fetch_and_add(&of->ended, ENDED);
	if (tell_counters(of)) {
		/* No row comes any more; what comes late is told apart. */
		of->is.sent_read = of->sent_told;
		of->is.received_read = of->received_told;
		return;
	}
	of->ended = ENDED_UNTOLD;
	add_difference(&procnet_news.sent_untold, &of->is.sent.sum, &of->sent_told);
	add_difference(&procnet_news.received_untold, &of->is.received.sum, &of->received_told);
	set_news(&procnet_news.has_moved);
}

static __always_inline void end_counters(void *sk)
{
	end_of(counters_of(sk, false));
	end_of(counters_of(sk, true));
}

/* connect() after a connection that has ended: the socket is another one, as far as we go. */
static __always_inline void begin_counters_anew(void *sk)
{
	struct procnet_counters *of = counters_of(sk, false);

	if (!of || !of->is.socket)
		return;
	end_of(of);
	__builtin_memset(&of->is, 0, sizeof(of->is));
	__builtin_memset(&of->sent_told, 0, sizeof(of->sent_told));
	__builtin_memset(&of->received_told, 0, sizeof(of->received_told));
	of->ended = NOT_ENDED;
	of->connections++;
}

#endif
