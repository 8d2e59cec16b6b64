/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Whose turn it is, without a name: a number that goes up when a five-tuple may have changed hands.
 *
 * The hooks that see an owner add one (procnet_next_turn), the program that counts puts the number
 * into the key of its counters (procnet_turn): so no counter has packets from before and from after
 * a change, and the ledger can join by time, without a table of owners that is asked per packet.
 *
 * Both objects have the map; user space makes it one (bpf_map__reuse_fd). Tuples share slots, which
 * only splits a counter that need not have been split.
 */
#ifndef PROCNET_TURNS_H
#define PROCNET_TURNS_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "procnet.h"

#define PROCNET_TURNS 65536
#define PROCNET_EPOCH 0 /* the slot that is added to all of them */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROCNET_TURNS);
	__type(key, __u32);
	__type(value, __u32);
} turns SEC(".maps");

#define PROCNET_TURN_MIX 0x9e3779b97f4a7c15ULL /* 2^64 / the golden ratio */

static __always_inline __u64 procnet_turn_end(const __u8 *address, __u16 port)
{
	const __u64 *words = (const __u64 *)address;
	__u64 sum = (words[0] ^ port) * PROCNET_TURN_MIX;

	sum = (sum ^ (sum >> 32) ^ words[1]) * PROCNET_TURN_MIX;
	return sum ^ (sum >> 32);
}

/*
 * The same for both ends, and never the epoch's. The tuple must be aligned to 8 bytes, complete (no
 * wildcard, no missing peer: for those, PROCNET_EPOCH) and as the packets have it: IPv4 addresses
 * mapped, ports in host order, an ICMP echo's id as both ports and 0 for other protocols without.
 */
static __always_inline __u32 procnet_turn_slot(const struct procnet_tuple *tuple)
{
	__u64 sum = procnet_turn_end(tuple->local_address, tuple->local_port) +
		    procnet_turn_end(tuple->remote_address, tuple->remote_port) + tuple->protocol;
	__u32 slot = (sum * PROCNET_TURN_MIX) >> 48;

	return slot ? slot : 1;
}

/*
 * The epoch is a time, in steps of 17 ms: the first step that begins after the last change. A change
 * splits all counters at once, and once more where its step ends; the next ones of the same step
 * only there. Else two processes that take turns on one socket, whose peer no hook can tell, would
 * make a counter of each packet of all others. A counter that has both of their turns is for the
 * ledger to say, which goes by time: AMBIGUOUS.
 */
#define PROCNET_EPOCH_SHIFT 24

/* The number that packets of the slot are counted under now (CLOCK_BOOTTIME). */
static __always_inline __u32 procnet_turn(__u32 slot, __u64 now_ns)
{
	__u32 at = PROCNET_EPOCH, now = now_ns >> PROCNET_EPOCH_SHIFT;
	__u32 *of_slot = bpf_map_lookup_elem(&turns, &slot);
	__u32 *of_all = bpf_map_lookup_elem(&turns, &at);
	__u32 epoch = of_all ? *(volatile __u32 *)of_all : 0;

	return (of_slot ? *(volatile __u32 *)of_slot : 0) +
	       ((__s32)(now - epoch) < 0 ? now : epoch);
}

/* From here on packets of the slot are counted apart; PROCNET_EPOCH: all packets are. */
static __always_inline void procnet_next_turn(__u32 slot)
{
	__u32 *turn = bpf_map_lookup_elem(&turns, &slot);

	if (!turn)
		return;
	if (slot == PROCNET_EPOCH)
		*(volatile __u32 *)turn = (bpf_ktime_get_boot_ns() >> PROCNET_EPOCH_SHIFT) + 1;
	else
		__sync_fetch_and_add(turn, 1);
}

#endif
