/* SPDX-License-Identifier: Apache-2.0 */
/* A cable whose frames have a VLAN tag, also where the kernel has no VLAN devices: tc programs. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TAG 7

SEC("leaves")
int put_on(struct __sk_buff *frame)
{
	bpf_skb_vlan_push(frame, bpf_htons(ETH_P_8021Q), TAG);
	return TC_ACT_OK;
}

SEC("comes")
int take_off(struct __sk_buff *frame)
{
	bpf_skb_vlan_pop(frame);
	return TC_ACT_OK;
}

char tag_license[] SEC("license") = "GPL";
