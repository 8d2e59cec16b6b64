/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What a packet adds to the figures of its socket, at cgroup_skb: what is sent before it is cut into
 * fragments, what is received when it has been put together, both without a link header.
 *
 * Part of owners.bpf.c; socket_counts.h says what becomes of the figures.
 */
#ifndef PROCNET_SOCKET_PACKETS_H
#define PROCNET_SOCKET_PACKETS_H

#define SYN_SENT 2 /* include/net/tcp_states.h */
#define LISTEN 10
#define TCP_HEADER_BYTES 20
#define UDP_HEADER_BYTES 8

/* The length of IP and transport header; 0 if it is not to be seen. */
static __always_inline __u32 transport_bytes(struct __sk_buff *skb, __u32 at, __u8 protocol)
{
	__u8 offset;

	switch (protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, at + 12, &offset, 1))
			return 0;
		return at + (offset >> 4) * 4;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return at + UDP_HEADER_BYTES;
	default:
		return at;
	}
}

__noinline __u32 odd_header_bytes(struct __sk_buff *skb)
{
	__u8 head[sizeof(struct ip4_header)];
	__u8 next;
	__u32 at;

	if (bpf_skb_load_bytes(skb, 0, head, sizeof(head)))
		return 0;
	if (head[0] >> 4 == 4)
		return transport_bytes(skb, (head[0] & 15) * 4, head[9]);
	next = head[6];
	at = skip_extensions(skb, &next);
	return at ? transport_bytes(skb, at, next) : 0;
}

/* The same; mostly they are in one piece, and no helper is needed. */
static __always_inline __u32 header_bytes(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 at;
	__u8 protocol;

	if (data + sizeof(struct ip6_header) + TCP_HEADER_BYTES <= end && data[0] >> 4 == 6) {
		protocol = data[6];
		at = sizeof(struct ip6_header);
	} else if (data + sizeof(struct ip4_header) + UDP_HEADER_BYTES <= end && data[0] == 0x45) {
		protocol = data[9];
		at = sizeof(struct ip4_header);
	} else {
		return odd_header_bytes(skb);
	}
	if (protocol == IPPROTO_UDP)
		return at + UDP_HEADER_BYTES;
	if (protocol != IPPROTO_TCP || data + at + TCP_HEADER_BYTES > end)
		return odd_header_bytes(skb);
	return at + (data[at + 12] >> 4) * 4;
}

/*
 * Several segments are one buffer until the device, or from it on (GSO, GRO): the headers of the
 * others are added.
 */
static __always_inline void measure(struct procnet_sum *sum, struct __sk_buff *skb, __u32 headers)
{
	__u32 bytes = skb->len, segments = skb->gso_segs;

	sum->packets = 1;
	sum->wire_bytes = bytes;
	sum->payload_bytes = headers && headers < bytes ? bytes - headers : 0;
	if (segments > 1) {
		sum->packets = segments;
		sum->wire_bytes += (segments - 1) * headers;
	}
}

/* `alone`: no other CPU adds to it meanwhile. */
static __always_inline void add_packet(struct procnet_counters *to, bool sent,
				       const struct procnet_sum *sum, bool alone)
{
	struct procnet_moved *moved = sent ? &to->is.sent : &to->is.received;

	if (alone) {
		moved->sum.payload_bytes += sum->payload_bytes;
		moved->sum.wire_bytes += sum->wire_bytes;
		barrier();
		moved->sum.packets += sum->packets; /* last, as in add_sum() */
	} else {
		add_sum(&moved->sum, sum);
	}
	moved->last_ns = bpf_ktime_get_coarse_ns(); /* 5.11, d05512618056 */
	set_news(&procnet_news.has_moved);
	if (!to->ended)
		return;
	if (to->ended == ENDED)
		tell_counters(to);
	else
		add_sum(sent ? &procnet_news.sent_untold : &procnet_news.received_untold, sum);
}

/* There is no room for the figures of a socket. */
static __always_inline void add_untold(bool sent, const struct procnet_sum *sum)
{
	add_sum(sent ? &procnet_news.sent_untold : &procnet_news.received_untold, sum);
	set_news(&procnet_news.has_moved);
}

/* Their first packet: whoever is quicker writes the same. */
static __noinline struct procnet_counters *begin_connection(struct __sk_buff *skb,
							    struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct procnet_counters *to;
	struct seen seen;

	if (!tcp || !see(&seen, (struct sock *)tcp, true))
		return NULL;
	to = MADE_STORAGE(counters, tcp, NULL);
	if (!to || to->is.socket)
		return to;
	to->is.tuple = seen.tuple;
	to->is.netns = seen.netns;
	to->is.flags = sk->state == SYN_SENT ? FIGURES_OPEN : 0;
	to->is.since_ns = bpf_ktime_get_boot_ns();
	barrier();
	to->is.socket = bpf_get_socket_cookie(skb) + ((__u64)to->connections << 48);
	return to;
}

/* Of several that are quick, one decides which remote end has its figures on the socket itself. */
static __noinline struct procnet_counters *begin_datagrams(struct __sk_buff *skb,
							   struct bpf_sock *sk,
							   const struct procnet_tuple *tuple,
							   __u32 netns)
{
	struct procnet_counters first = {};

	if (!sk || !tuple)
		return NULL;
	first.is.tuple = *tuple;
	first.is.netns = netns;
	first.is.since_ns = bpf_ktime_get_boot_ns();
	first.is.socket = bpf_get_socket_cookie(skb);
	if (is_mapped(tuple->local_address) && is_mapped(tuple->remote_address) &&
	    tuple->protocol == IPPROTO_UDP)
		first.is.flags = FIGURES_PLAIN;
	return MADE_STORAGE(counters, sk, &first);
}

/* Whoever is quicker writes the same. */
static __noinline struct procnet_counters *begin_rest(struct bpf_sock *sk,
						      const struct procnet_counters *of)
{
	struct procnet_counters *rest;

	if (!sk || !of)
		return NULL;
	rest = MADE_STORAGE(rests, sk, NULL);
	if (!rest || rest->is.socket)
		return rest;
	rest->is.tuple = of->is.tuple;
	__builtin_memset(rest->is.tuple.remote_address, 0, 16);
	rest->is.tuple.remote_port = 0;
	rest->is.netns = of->is.netns;
	rest->is.since_ns = bpf_ktime_get_boot_ns();
	rest->is.flags = FIGURES_REST;
	barrier();
	rest->is.socket = of->is.socket;
	return rest;
}

/* The remote end is one too many: what the socket has moved is known all the same. */
static __noinline void add_rest(struct bpf_sock *sk, struct procnet_counters *of, bool sent,
			       const struct procnet_sum *sum)
{
	struct procnet_counters *rest = bpf_sk_storage_get(&rests, sk, NULL, 0);

	if (!of || !sum)
		return;
	if (!rest || !rest->is.socket)
		rest = begin_rest(sk, of);
	if (rest)
		add_packet(rest, sent, sum, false);
	else
		add_untold(sent, sum);
	__sync_fetch_and_add(&procnet_news.unsplit_packets, sum->packets);
}

/* A packet's part in the opening of a connection. */
struct handshake {
	__u32 of; /* the number that the client's data begins with: no two have the same */
	bool opens;
};

/* False if there is no room. */
static __noinline bool add_remote(struct procnet_counters *of, const struct procnet_tuple *tuple,
				  bool sent, const struct procnet_sum *sum,
				  const struct handshake *part)
{
	struct procnet_remote_key key = {};
	struct procnet_remote_value *value;
	struct procnet_moved *moved;
	__u32 here = 0;
	void *table = bpf_map_lookup_elem(&remotes, &here);

	if (!of || !tuple || !sum || !part || !table)
		return false;
	key.tuple = *tuple;
	key.socket = of->is.socket;
	key.turn = of->turn + part->of;
	key.netns = of->is.netns;
	value = bpf_map_lookup_elem(table, &key);
	if (!value) {
		struct procnet_remote_value none = {
			.first_ns = bpf_ktime_get_boot_ns(),
			.opens = part->opens,
		};

		/* Another CPU may have been quicker. */
		if (!bpf_map_update_elem(table, &key, &none, BPF_NOEXIST))
			__sync_fetch_and_add(&procnet_news.remotes, 1);
		value = bpf_map_lookup_elem(table, &key);
		if (!value)
			return false;
	}
	moved = sent ? &value->sent : &value->received;
	add_sum(&moved->sum, sum);
	moved->last_ns = bpf_ktime_get_coarse_ns(); /* 5.11, d05512618056 */
	return true;
}

/* The tuple as the socket has it. */
__noinline int read_packet_of(struct __sk_buff *skb, struct procnet_tuple *tuple, bool sent)
{
	struct procnet_tuple read = {};
	bool is_read = read_packet(skb, &read);

	if (!tuple)
		return false;
	*tuple = read;
	if (!sent) {
		__builtin_memcpy(tuple->local_address, read.remote_address, 16);
		__builtin_memcpy(tuple->remote_address, read.local_address, 16);
		tuple->local_port = read.remote_port;
		tuple->remote_port = read.local_port;
	}
	return is_read;
}

/* What a segment says, but for its ports. (Not found behind IPv6 extension headers.) */
struct said {
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
};

#define SYN 0x02
#define ACK 0x10

static __always_inline void read_said(struct __sk_buff *skb, struct said *said)
{
	__u8 first = 0;

	__builtin_memset(said, 0, sizeof(*said));
	bpf_skb_load_bytes(skb, 0, &first, 1);
	bpf_skb_load_bytes(skb, (first >> 4 == 4 ? (first & 15) * 4 : 40) + 4, said, sizeof(*said));
}

/*
 * A packet for a connection that another CPU is just making is given to the listener first and then
 * to the connection (req_stolen in tcp_v4_rcv(): 4.16, e0f9759f530b). It is the same one if it is at
 * the same place in memory, as long, and says the same.
 */
struct procnet_listened {
	__u64 packet;
	struct said said;
	__u32 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct procnet_listened);
} listened SEC(".maps");

#define PACKETS_OF_A_NEW_CONNECTION 8

static __always_inline void note_listened(struct __sk_buff *skb, const struct said *said)
{
	__u32 first = 0;
	struct procnet_listened *last = bpf_map_lookup_elem(&listened, &first);

	if (!last)
		return;
	last->packet = (long)skb;
	last->said = *said;
	last->bytes = skb->len;
}

static __always_inline bool was_listened_to(struct __sk_buff *skb)
{
	__u32 first = 0;
	struct procnet_listened *last = bpf_map_lookup_elem(&listened, &first);
	__u64 packet = (long)skb;
	struct said said;

	if (!last || last->packet != packet || last->bytes != skb->len)
		return false;
	read_said(skb, &said);
	return said.seq == last->said.seq && said.ack == last->said.ack &&
	       said.flags == last->said.flags && said.window == last->said.window;
}

static __noinline void count_handshake(struct __sk_buff *skb, struct bpf_sock *sk,
				       struct procnet_counters *to, bool sent,
				       const struct procnet_sum *sum)
{
	struct procnet_tuple tuple = {};
	struct handshake part;
	struct said said;

	if (!sk || !to || !sum)
		return;
	read_said(skb, &said);
	if (!sent)
		note_listened(skb, &said);
	part.opens = (said.flags & (SYN | ACK)) == SYN;
	part.of = sent ? bpf_ntohl(said.ack) : bpf_ntohl(said.seq) + part.opens;
	if (!read_packet_of(skb, &tuple, sent) || !add_remote(to, &tuple, sent, sum, &part))
		add_rest(sk, to, sent, sum);
}

static __noinline void count_segment(struct __sk_buff *skb, struct bpf_sock *sk, bool sent)
{
	struct procnet_counters *to = bpf_sk_storage_get(&counters, sk, NULL, 0);
	struct procnet_sum sum;

	if (!to && procnet_only_netns) {
		struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

		if (tcp && is_of_others((struct sock *)tcp))
			return;
	}
	measure(&sum, skb, header_bytes(skb));
	if (!to || !to->is.socket)
		to = begin_connection(skb, sk);
	if (!to) {
		add_untold(sent, &sum);
		return;
	}
	/* A handshake, perhaps with data, has no other socket yet. */
	if (sk->state == LISTEN) {
		count_handshake(skb, sk, to, sent, &sum);
		return;
	}
	if (!sent && to->is.received.sum.packets < PACKETS_OF_A_NEW_CONNECTION &&
	    was_listened_to(skb))
		return;
	/* Whoever sends on a connection has its lock. */
	add_packet(to, sent, &sum, sent);
}

static __always_inline bool is_same(const struct procnet_tuple *one,
				    const struct procnet_tuple *other)
{
	const __u64 *left = (const __u64 *)one, *right = (const __u64 *)other;

	return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] &&
	       left[3] == right[3] && left[4] == right[4];
}

/*
 * A raw socket is given copies of what others asked for, or the kernel: of the protocols that are
 * not only its own, what answers to a packet that it sent.
 */
static __always_inline bool is_copy(struct bpf_sock *sk, const struct procnet_tuple *tuple)
{
	struct procnet_socket *socket;

	if (sk->type != SOCK_RAW || !is_spoken_by_others(tuple->protocol))
		return false;
	socket = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	return !socket || !bpf_map_lookup_elem(&users, &(struct procnet_use){socket->id, *tuple});
}

/* Without a helper: UDP over IPv4, and the remote end that the figures are of. */
static __always_inline bool is_plain(struct __sk_buff *skb, const struct procnet_figures *figures,
				     bool sent)
{
	const struct procnet_tuple *tuple = &figures->tuple;
	const __u32 *local = (const __u32 *)tuple->local_address;
	const __u32 *remote = (const __u32 *)tuple->remote_address;
	struct ip4_flow flow;

	if (!(figures->flags & FIGURES_PLAIN) || !read_plain(skb, &flow))
		return false;
	if (sent)
		return flow.local_address == local[3] && flow.remote_address == remote[3] &&
		       flow.local_port == bpf_htons(tuple->local_port) &&
		       flow.remote_port == bpf_htons(tuple->remote_port);
	return flow.remote_address == local[3] && flow.local_address == remote[3] &&
	       flow.remote_port == bpf_htons(tuple->local_port) &&
	       flow.local_port == bpf_htons(tuple->remote_port);
}

static __noinline void count_packet(struct __sk_buff *skb, struct bpf_sock *sk, bool sent)
{
	struct procnet_counters *to = bpf_sk_storage_get(&counters, sk, NULL, 0);
	const struct handshake none = {};
	struct procnet_tuple tuple = {};
	struct procnet_sum sum;
	__u32 netns = 0;
	bool is_read;

	if (!to) {
		struct procnet_socket *socket = bpf_sk_storage_get(&sockets, sk, NULL, 0);

		/* One of the kernel's own is left to the tap, and others may not be meant. */
		if (!socket)
			return;
		netns = socket->netns;
	}
	if (to && sk->type == SOCK_DGRAM && is_plain(skb, &to->is, sent)) {
		measure(&sum, skb, sizeof(struct ip4_header) + UDP_HEADER_BYTES);
		add_packet(to, sent, &sum, false);
		return;
	}
	is_read = read_packet_of(skb, &tuple, sent);
	/* Around it, by a tunnel or IPsec, is another protocol. */
	if (sk->type == SOCK_DGRAM && tuple.protocol != sk->protocol)
		is_read = false;
	if (!sent && is_copy(sk, &tuple))
		return;
	measure(&sum, skb, header_bytes(skb));
	if (!to) {
		to = begin_datagrams(skb, sk, &tuple, netns);
		if (!to)
			return;
	}
	if (is_same(&to->is.tuple, &tuple))
		add_packet(to, sent, &sum, false);
	else if (!is_read || !add_remote(to, &tuple, sent, &sum, &none))
		add_rest(sk, to, sent, &sum);
}

static __always_inline void count_at(struct __sk_buff *skb, struct bpf_sock *sk, bool sent)
{
	if (!procnet_counting)
		return;
	if (has_packets(sk))
		count_packet(skb, sk, sent);
	else if (sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP)
		count_segment(skb, sk, sent);
}

SEC("cgroup_skb/ingress")
int on_receive_counting(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		count_at(skb, sk, false);
	return 1;
}

/*
 * A connection that is closed has no packets any more, or a last RST: TIME_WAIT, and what answers for
 * a closed port, have sockets of their own. Asked of each that we see begin, because not all kernels
 * run tracing programs in every softirq: see README.md.
 */
SEC("sockops")
int on_tcp_state(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_STATE_CB:
		sk = ctx->sk;
		if (sk && ctx->args[1] == BPF_TCP_CLOSE)
			end_counters(sk);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
						       BPF_SOCK_OPS_STATE_CB_FLAG);
	}
	return 1;
}

/* The others, at the latest. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(on_tcp_destroy, struct sock *sk)
{
	end_counters(sk);
	return 0;
}

static __always_inline int read_counters(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct procnet_counters *of = ctx->value;
	struct procnet_socket_record record;

	if (!of || !of->is.socket || of->ended)
		return 0;
	if (of->is.sent.sum.packets == of->is.sent_read.packets &&
	    of->is.received.sum.packets == of->is.received_read.packets)
		return 0;
	record.layout = PROCNET_LAYOUT;
	record.pad[0] = record.pad[1] = record.pad[2] = 0;
	record.time_ns = bpf_ktime_get_boot_ns();
	record.figures = of->is;
	if (bpf_seq_write(ctx->meta->seq, &record, sizeof(record)) || of->ended)
		return 0;
	of->sent_told = of->is.sent_read = record.figures.sent.sum;
	of->received_told = of->is.received_read = record.figures.received.sum;
	return 0;
}

/* What has moved since the last time. */
SEC("iter/bpf_sk_storage_map")
int on_counters(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	return read_counters(ctx);
}

#endif
