/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What owner_hooks.py holds the hooks against: the least that counting at a socket can be, by
 * cgroup_skb in both directions. Programs that do nothing; and those that find the socket's figures
 * and add to them, whatever the packet is and whoever it is from.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct figures {
	__u64 sent_packets, sent_bytes, received_packets, received_bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct figures);
} figures SEC(".maps");

SEC("cgroup_skb/egress")
int empty_egress(struct __sk_buff *skb)
{
	return 1;
}

SEC("cgroup_skb/ingress")
int empty_ingress(struct __sk_buff *skb)
{
	return 1;
}

static __always_inline struct figures *figures_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return NULL;
	sk = bpf_sk_fullsock(sk);
	return sk ? bpf_sk_storage_get(&figures, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE) : NULL;
}

SEC("cgroup_skb/egress")
int least_egress(struct __sk_buff *skb)
{
	struct figures *of = figures_of(skb);

	if (of) {
		__sync_fetch_and_add(&of->sent_packets, 1);
		__sync_fetch_and_add(&of->sent_bytes, skb->len);
	}
	return 1;
}

SEC("cgroup_skb/ingress")
int least_ingress(struct __sk_buff *skb)
{
	struct figures *of = figures_of(skb);

	if (of) {
		__sync_fetch_and_add(&of->received_packets, 1);
		__sync_fetch_and_add(&of->received_bytes, skb->len);
	}
	return 1;
}

char _license[] SEC("license") = "GPL";
