/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The contract between the BPF programs and user space. Its mirror is procnet/bpf/layout.py; a test
 * compiles this file and compares the two. Fixed widths, explicit padding, no implicit tail.
 * Change PROCNET_LAYOUT with any change here: user space reads no record of another layout.
 */
#ifndef PROCNET_H
#define PROCNET_H

/* A CO-RE program includes vmlinux.h first, which has these types. */
#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#define PROCNET_LAYOUT 5

#define PROCNET_COMM_LEN 16 /* TASK_COMM_LEN */

/* The numbers of procnet.model.EventKind. */
enum procnet_event_kind {
	PROCNET_CONNECT = 1,
	PROCNET_ACCEPT = 2,
	PROCNET_SEND = 3,
	PROCNET_RECEIVE = 4,
	PROCNET_CLOSE = 5,
	PROCNET_INJECT = 6,
};

/* The actor is a kernel thread: there is no process to name. */
#define PROCNET_FLAG_KERNEL 1
/* A CLOSE by the same process, at the same time, goes with it. */
#define PROCNET_FLAG_CLOSES 2
/* What the process has of a connection from here on; where neither stands: both. */
#define PROCNET_FLAG_SENDS 4
#define PROCNET_FLAG_RECEIVES 8
/*
 * Bytes of the last sender's may leave after this one's first, and nobody can tell them apart; but if
 * there are `packet_bytes`: of a TCP packet with so many, `part_bytes` are this process's. Of a CLOSE:
 * packets that were sent by the socket still have to leave.
 */
#define PROCNET_FLAG_SHARED 16
/* Whatever closed sockets of this port still had to send has left. */
#define PROCNET_FLAG_LEFT 32

/*
 * Both addresses are 16 bytes long, IPv4 in its mapped form (::ffff:a.b.c.d). A local wildcard
 * keeps the family, :: or ::ffff:0.0.0.0; a remote one means that the hook does not know the peer.
 * Ports are in host order; 0 for raw sockets. A ping socket has its ICMP id as both.
 */
struct procnet_tuple {
	__u8 local_address[16];
	__u8 remote_address[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

struct procnet_owner_event {
	__u16 layout; /* PROCNET_LAYOUT */
	__u8 kind;    /* enum procnet_event_kind */
	__u8 flags;
	__u32 netns;       /* inode of the socket's network namespace */
	__u64 time_ns;     /* CLOCK_BOOTTIME */
	__u64 start_ns;    /* start_boottime of the thread group leader */
	__u64 inode;       /* of the socket file, 0 where there is none yet */
	__u64 cgroup_id;   /* cgroup v2, of the actor */
	__u64 born_ns;     /* before it nothing came in for the socket; 0: not known */
	__u32 tgid;        /* in the initial pid namespace */
	__u32 uid;         /* in the initial user namespace */
	__u32 part_bytes;
	__u32 packet_bytes;
	struct procnet_tuple tuple;
	__u8 comm[PROCNET_COMM_LEN]; /* of the thread group leader; any bytes, NUL-terminated if shorter */
};

#define PROCNET_NAME_BYTES 256 /* NAME_MAX (include/uapi/linux/limits.h) and the NUL */
#define PROCNET_EXE_BYTES 1024
#define PROCNET_ARGS_BYTES 1024
#define PROCNET_CGROUP_BYTES 512

/*
 * A process as it is when it first uses a socket, for when nobody can ask it any more. A path is its
 * names from the last to the first, each with its NUL; 0 bytes: not known, or longer than that.
 */
struct procnet_process {
	__u16 layout; /* PROCNET_LAYOUT */
	__u16 exe_bytes;
	__u16 args_bytes; /* as in /proc/PID/cmdline, cut */
	__u16 cgroup_bytes;
	__u64 start_ns;
	__u32 tgid;
	__u32 parent_tgid;
	__u32 uid;
	__u32 pad;
	__u8 comm[PROCNET_COMM_LEN];
	__u8 exe[PROCNET_EXE_BYTES];
	__u8 args[PROCNET_ARGS_BYTES];
	__u8 cgroup[PROCNET_CGROUP_BYTES];
};

#define PROCNET_AT(member, offset)                                                                 \
	_Static_assert(__builtin_offsetof(struct procnet_owner_event, member) == (offset),         \
		       "layout of procnet_owner_event." #member)

_Static_assert(sizeof(struct procnet_tuple) == 40, "size of procnet_tuple");
_Static_assert(sizeof(struct procnet_owner_event) == 120, "size of procnet_owner_event");
PROCNET_AT(layout, 0);
PROCNET_AT(time_ns, 8);
PROCNET_AT(tgid, 48);
PROCNET_AT(tuple, 64);
PROCNET_AT(comm, 104);
_Static_assert(sizeof(struct procnet_process) == 2608, "size of procnet_process");

#endif
