// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * How many? Runs on every packet that a capture handle would be given (SO_ATTACH_BPF) and counts it
 * here: 0 says that nobody need see it. What it cannot read, it does not count: user space is given
 * the frame and does. So each packet is counted once, by one of the two.
 *
 * The rules are those of procnet/capture/decode.py, and a test holds the two together. What only
 * the kernel knows is better here: that a buffer stands for several packets (GSO, GRO).
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "procnet.h"
#include "turns.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * The tuple's local end is the sender's. In its pad: whether this host sent the packet, and the
 * CPU. With the CPU in the key nobody else writes to a counter, as in a per-CPU map, but memory
 * grows with the flows that there are and not with the CPUs that there might be.
 */
struct procnet_count_key {
	struct procnet_tuple tuple;
	__u32 turn;
	__u32 interface_index;
};

enum procnet_key_pad { PAD_OUTGOING = 0, PAD_CPU = 1 /* two bytes, the low one first */ };

struct procnet_count {
	__u64 packets;
	__u64 wire_bytes;
	__u64 payload_bytes;
	__u64 first_ns; /* CLOCK_BOOTTIME */
	__u64 last_ns;
	__u8 opens; /* the first packet is a TCP SYN without ACK */
	__u8 pad[7];
};

struct procnet_overflow_key {
	__u32 interface_index;
	__u32 outgoing;
};

_Static_assert(sizeof(struct procnet_count_key) == 48, "size of procnet_count_key");
_Static_assert(sizeof(struct procnet_count) == 48, "size of procnet_count");

/* For user space to compare with its mirrors before it reads a record. */
const struct {
	__u32 layout;
	__u32 key_bytes;
	__u32 count_bytes;
} procnet_contract SEC(".rodata.contract") = {
	PROCNET_LAYOUT,
	sizeof(struct procnet_count_key),
	sizeof(struct procnet_count),
};

#define ENTRIES 65536
#define INTERFACES 1024

/* The bytes of a frame that are kept: SNAPLEN_BYTES of procnet/capture/handle.py. */
#define HAND_UP 256
#define COUNTED 0

#define ETHERTYPE_AT 12
#define PACKET_OUTGOING 4 /* include/uapi/linux/if_packet.h */
#define LOOPBACK_IFINDEX 1 /* include/net/flow.h; the first one of every namespace */
#define TAGS 4
#define EXTENSIONS 8

/*
 * One of the two tables is written and the other is empty or being read, never both: user space
 * puts the empty one into `counting`, and is back from that when no program is in the old one any
 * more (maybe_wait_bpf_programs(), 4.20, 1ae80cf31938).
 */
struct procnet_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENTRIES);
	__type(key, struct procnet_count_key);
	__type(value, struct procnet_count);
} first_table SEC(".maps"), second_table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct procnet_table);
} counting SEC(".maps") = {
	.values = {[0] = (void *)&first_table},
};

/* What found the table full. Only grows. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2 * INTERFACES);
	__type(key, struct procnet_overflow_key);
	__type(value, struct procnet_count);
} overflow SEC(".maps");

enum procnet_news { NEWS_ENTRIES = 0, NEWS_OVERFLOW = 1, NEWS = 2 };

/*
 * How much there is to read: entries that were made, and whether any packet found no room. Written
 * here, set to 0 by user space, which maps it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NEWS);
	__type(key, __u32);
	__type(value, __u64);
} news SEC(".maps");

/* As much of the upper header as is ever asked for: up to the flags of TCP. */
#define UPPER_BYTES 16
#define SHORT_UPPER_BYTES 8

struct ip4_packet {
	struct ip4_header ip;
	__u8 upper[UPPER_BYTES];
};

struct ip6_packet {
	struct ip6_header ip;
	__u8 upper[UPPER_BYTES];
};

/* What is learnt of a packet. */
struct procnet_packet {
	struct procnet_count_key key;
	__u32 wire_bytes;
	__u32 inner_bytes; /* above the IP headers */
	__u32 header_bytes; /* of the transport header */
	bool opens;
};

/* Where the IP header is looked for: at an offset from the network or from the link header. */
struct place {
	__u32 at;
	__u32 from;
};

static __always_inline bool load(struct __sk_buff *skb, struct place place, void *to, __u32 bytes)
{
	return !bpf_skb_load_bytes_relative(skb, place.at, to, bytes, place.from);
}

/* How much there is of the upper header: 16 bytes are enough for all, 8 for all but TCP. */
static __always_inline __u32 load_upper(struct __sk_buff *skb, struct place place, __u8 *to)
{
	if (load(skb, place, to, UPPER_BYTES))
		return UPPER_BYTES;
	return load(skb, place, to, SHORT_UPPER_BYTES) ? SHORT_UPPER_BYTES : 0;
}

/* The same with the IP header before it, in one go; -1 if that is not there. */
static __always_inline int load_packet(struct __sk_buff *skb, struct place place, void *to,
				       __u32 ip_bytes)
{
	if (load(skb, place, to, ip_bytes + UPPER_BYTES))
		return UPPER_BYTES;
	if (load(skb, place, to, ip_bytes + SHORT_UPPER_BYTES))
		return SHORT_UPPER_BYTES;
	return load(skb, place, to, ip_bytes) ? 0 : -1;
}

static __always_inline bool read_transport(struct procnet_packet *packet, const __u8 *upper,
					   __u32 had_bytes)
{
	struct procnet_tuple *tuple = &packet->key.tuple;

	switch (tuple->protocol) {
	case IPPROTO_TCP:
		if (had_bytes < UPPER_BYTES || packet->inner_bytes < 20)
			return false;
		packet->header_bytes = (upper[12] >> 4) * 4;
		if (packet->header_bytes < 20)
			return false;
		packet->opens = (upper[13] & 0x12) == 0x02;
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		if (had_bytes < SHORT_UPPER_BYTES || packet->inner_bytes < 8)
			return false;
		packet->header_bytes = 8;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (had_bytes < SHORT_UPPER_BYTES || packet->inner_bytes < 8)
			return false;
		packet->header_bytes = 8;
		if (is_echo(tuple->protocol, upper[0]))
			tuple->local_port = tuple->remote_port = upper[4] << 8 | upper[5];
		return true;
	default:
		return true;
	}
	tuple->local_port = upper[0] << 8 | upper[1];
	tuple->remote_port = upper[2] << 8 | upper[3];
	return true;
}

/* 0 if it is not known. The buffer begins with the link header, that of Ethernet if it looks so. */
static __always_inline __u32 bytes_from(struct __sk_buff *skb, struct place place)
{
	__be16 kind = 0;

	if (place.from == BPF_HDR_START_NET) {
		if (bpf_skb_load_bytes(skb, ETHERTYPE_AT, &kind, sizeof(kind)) ||
		    kind != skb->protocol)
			return 0;
		place.at = ETHERTYPE_AT + sizeof(kind);
	}
	return skb->len > place.at ? skb->len - place.at : 0;
}

static __always_inline bool read_ipv4(struct __sk_buff *skb, struct procnet_packet *packet,
				      struct place place)
{
	struct ip4_packet read;
	int had_bytes = load_packet(skb, place, &read, sizeof(read.ip));
	__u32 ip_bytes;

	if (had_bytes < 0)
		return false;
	ip_bytes = (read.ip.version_and_words & 15) * 4;
	packet->wire_bytes = bpf_ntohs(read.ip.total);
	/* More than it can say: a buffer of several packets (BIG TCP, 6.3, b1a78b9b9886). */
	if (!packet->wire_bytes)
		packet->wire_bytes = bytes_from(skb, place);
	/* Fragments go up: who is to remember the ports of the first one? */
	if (read.ip.version_and_words >> 4 != 4 || ip_bytes < sizeof(read.ip) ||
	    packet->wire_bytes < ip_bytes || read.ip.fragment & bpf_htons(0x3fff))
		return false;
	if (ip_bytes > sizeof(read.ip)) {
		place.at += ip_bytes;
		had_bytes = load_upper(skb, place, read.upper);
		if (!had_bytes)
			return false;
	}
	packet->inner_bytes = packet->wire_bytes - ip_bytes;
	set_ipv4(packet->key.tuple.local_address, read.ip.source);
	set_ipv4(packet->key.tuple.remote_address, read.ip.destination);
	packet->key.tuple.protocol = read.ip.protocol;
	return read_transport(packet, read.upper, had_bytes);
}

/* Goes behind the extension headers; false for what is left to user space. */
static __always_inline bool skip_extensions(struct __sk_buff *skb, struct procnet_packet *packet,
					    struct place *place)
{
	__u8 protocol = packet->key.tuple.protocol;

	for (int i = 0; i < EXTENSIONS; i++) {
		__u8 header[4] = {};
		__u32 bytes;

		if (!is_extension(protocol)) {
			packet->key.tuple.protocol = protocol;
			return true;
		}
		if (!load(skb, *place, header, sizeof(header)))
			return false;
		/* More fragments, or an offset. */
		if (protocol == IPPROTO_FRAGMENT && (header[2] || header[3] & 0xf9))
			return false;
		bytes = extension_bytes(protocol, header[1]);
		if (bytes > packet->inner_bytes)
			return false;
		packet->inner_bytes -= bytes;
		place->at += bytes;
		protocol = header[0];
	}
	return false;
}

static __always_inline bool read_ipv6(struct __sk_buff *skb, struct procnet_packet *packet,
				      struct place place)
{
	struct ip6_packet read;
	int had_bytes = load_packet(skb, place, &read, sizeof(read.ip));
	__u8 *source = packet->key.tuple.local_address;
	__u8 *destination = packet->key.tuple.remote_address;

	if (had_bytes < 0)
		return false;
	/* A payload of 0 may be a jumbogram's. */
	if ((read.ip.version_and_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
	    !read.ip.payload)
		return false;
	packet->inner_bytes = bpf_ntohs(read.ip.payload);
	packet->wire_bytes = packet->inner_bytes + sizeof(read.ip);
	__builtin_memcpy(source, read.ip.source, 16);
	__builtin_memcpy(destination, read.ip.destination, 16);
	packet->key.tuple.protocol = read.ip.next;
	if (is_extension(read.ip.next)) {
		place.at += sizeof(read.ip);
		if (!skip_extensions(skb, packet, &place))
			return false;
		had_bytes = load_upper(skb, place, read.upper);
	}
	return read_transport(packet, read.upper, had_bytes);
}

static __always_inline bool is_tag(__be16 kind)
{
	return kind == bpf_htons(ETH_P_8021Q) || kind == bpf_htons(ETH_P_8021AD) ||
	       kind == bpf_htons(ETH_P_QINQ1);
}

/*
 * Tags in the frame, of which skb->protocol is the first. Where the network header is said to be is
 * no help: behind the tags if the kernel put them in, before them if they came so.
 */
static __noinline bool read_tagged(struct __sk_buff *skb, struct procnet_packet *packet)
{
	struct place place = {ETHERTYPE_AT, BPF_HDR_START_MAC};
	__be16 kind = 0;

	if (!packet)
		return false;
	for (int i = 0; i <= TAGS; i++) {
		if (!load(skb, place, &kind, sizeof(kind)))
			return false;
		if (!is_tag(kind))
			break;
		place.at += 4;
	}
	place.at += sizeof(kind);
	if (kind == bpf_htons(ETH_P_IP))
		return read_ipv4(skb, packet, place);
	if (kind == bpf_htons(ETH_P_IPV6))
		return read_ipv6(skb, packet, place);
	return false;
}

static __always_inline bool read_packet(struct __sk_buff *skb, struct procnet_packet *packet)
{
	const struct place network = {0, BPF_HDR_START_NET};

	if (skb->protocol == bpf_htons(ETH_P_IP))
		return read_ipv4(skb, packet, network);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return read_ipv6(skb, packet, network);
	return is_tag(skb->protocol) && read_tagged(skb, packet);
}

static __always_inline void tell(__u32 what)
{
	__u64 *number = bpf_map_lookup_elem(&news, &what);

	if (number)
		__sync_fetch_and_add(number, 1);
}

/* Nobody else writes to a counter: a CPU handles packets with softirqs off. */
static __always_inline void add(struct procnet_count *to, const struct procnet_count *more)
{
	to->packets += more->packets;
	to->wire_bytes += more->wire_bytes;
	to->payload_bytes += more->payload_bytes;
	to->last_ns = more->last_ns;
}

/* False if there is no room even to say that there is no room. */
static __noinline bool add_overflow(const struct procnet_count_key *key,
				    const struct procnet_count *more)
{
	struct procnet_overflow_key of = {};
	struct procnet_count *count, none = {};

	if (!key || !more)
		return false;
	of.interface_index = key->interface_index;
	of.outgoing = key->tuple.pad[PAD_OUTGOING];
	count = bpf_map_lookup_elem(&overflow, &of);
	if (!count) {
		/* Another CPU may have been quicker. */
		bpf_map_update_elem(&overflow, &of, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&overflow, &of);
		if (!count)
			return false;
	}
	add(count, more);
	tell(NEWS_OVERFLOW);
	return true;
}

SEC("socket")
int on_packet(struct __sk_buff *skb)
{
	bool outgoing = skb->pkt_type == PACKET_OUTGOING;
	struct procnet_packet packet = {};
	struct procnet_count_key *key = &packet.key;
	struct procnet_count *count, more = {};
	__u32 here = 0, slot, cpu = bpf_get_smp_processor_id(), segments = skb->gso_segs;
	void *table;

	if (!read_packet(skb, &packet))
		/* Of the two copies of a loopback packet libpcap throws this one away. */
		return outgoing && skb->ifindex == LOOPBACK_IFINDEX ? COUNTED : HAND_UP;
	more.packets = 1;
	more.wire_bytes = packet.wire_bytes;
	if (packet.inner_bytes > packet.header_bytes)
		more.payload_bytes = packet.inner_bytes - packet.header_bytes;
	if (segments > 1) {
		more.packets = segments;
		more.wire_bytes += (__u64)(segments - 1) *
				   (packet.wire_bytes - packet.inner_bytes + packet.header_bytes);
	}
	more.first_ns = more.last_ns = bpf_ktime_get_boot_ns();
	more.opens = packet.opens;

	slot = procnet_turn_slot(&key->tuple);
	if (packet.opens)
		procnet_next_turn(slot);
	key->turn = procnet_turn(slot, more.first_ns);
	key->interface_index = skb->ifindex;
	key->tuple.pad[PAD_OUTGOING] = outgoing;
	key->tuple.pad[PAD_CPU] = cpu;
	key->tuple.pad[PAD_CPU + 1] = cpu >> 8;

	table = bpf_map_lookup_elem(&counting, &here);
	if (!table)
		return HAND_UP;
	count = bpf_map_lookup_elem(table, key);
	if (count)
		add(count, &more);
	else if (!bpf_map_update_elem(table, key, &more, BPF_NOEXIST))
		tell(NEWS_ENTRIES);
	else if (!add_overflow(key, &more))
		return HAND_UP;
	return COUNTED;
}
