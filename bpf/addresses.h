/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Addresses as records have them: 16 bytes, IPv4 in its mapped form (::ffff:0:0/96, RFC 4291). */
#ifndef PROCNET_ADDRESSES_H
#define PROCNET_ADDRESSES_H

static __always_inline void set_ipv4(__u8 *to, __be32 address)
{
	__u32 *words = (__u32 *)to;

	words[0] = words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

static __always_inline bool is_any(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && !words[3] &&
	       (!words[2] || words[2] == bpf_htonl(0xffff));
}

static __always_inline bool is_mapped(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

#endif
