// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Whose socket is it? CO-RE, compiled once, for every kernel with BTF and cgroup v2. Events only: a
 * record leaves when a (socket, five-tuple) has a new user. README.md has the table of hooks.
 *
 * What was told last is noted on the socket itself (SK_STORAGE): it goes away with the socket, and
 * a call that changes nothing costs a lookup there. Nobody is ever named from softirq: every event
 * is of the process that `current` is, in a hook where that is the actor; egress, where it need not
 * be, asks its file table before it believes in a new user.
 *
 * User space chooses the programs by trying. None is loaded unless it is asked for.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "kernel.h"
#include "packet.h"
#include "procnet.h"
#include "turns.h"

#define PROCNET_PART static __noinline
#define PROCNET_OFFSET bpf_core_field_offset

static __always_inline struct kernfs_node *procnet_parent(struct kernfs_node *node)
{
	struct kernfs_node___6_15 *later = (void *)node;

	if (bpf_core_field_exists(later->__parent))
		return BPF_CORE_READ(later, __parent);
	return BPF_CORE_READ(node, parent);
}

/* 5.17, e6f2dd0f8067: what bpf_loop() calls is looked at once by the verifier. */
#define PROCNET_WALK(step, walk)                                                                   \
	do {                                                                                       \
		if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_loop))                   \
			bpf_loop(PROCNET_DEPTH, step, &(walk), 0);                                 \
		else                                                                               \
			for (__u32 i = 0; i < PROCNET_DEPTH && !step(i, &(walk)); i++)             \
				;                                                                  \
	} while (0)

#include "process.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What the iterator writes for each socket in each file table; procnet/bpf/snapshot.py reads it. */
struct procnet_open_socket {
	struct procnet_tuple tuple;
	__u64 inode;
	__u64 start_ns; /* of the process that has it open */
	__u64 born_ns;  /* as in an event */
	__u32 tgid;
	__u32 netns;
	__u32 uid;   /* of the socket */
	__u8 family; /* 4 or 6 */
	__u8 state;  /* include/net/tcp_states.h */
	__u8 type;   /* SOCK_STREAM and so on */
	__u8 pad;
};

_Static_assert(sizeof(struct procnet_open_socket) == 80, "size of procnet_open_socket");

/* For user space to compare with its mirrors before it reads a record. */
const struct {
	__u32 layout;
	__u32 event_bytes;
	__u32 process_bytes;
	__u32 open_socket_bytes;
} procnet_contract SEC(".rodata.contract") = {
	PROCNET_LAYOUT,
	sizeof(struct procnet_owner_event),
	sizeof(struct procnet_process),
	sizeof(struct procnet_open_socket),
};

/* The only network namespace that is told of, by its inode; 0 for all. User space may set it. */
const volatile __u32 procnet_only_netns SEC(".rodata.netns") = 0;

#define RING_BYTES (4 << 20) /* events of 128 bytes: 32,000 of them between two reads */
#define PROCESS_RING_BYTES (4 << 20) /* 1,600 of them */
#define USERS 65536
#define CLOSED 4096
#define KNOWN 4096 /* a power of two */

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define TCP_CLOSE 7
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

/* What we know of a datagram or raw socket; of one that listens, since when. */
struct procnet_socket {
	__u64 inode; /* of its file; 0 where there was none yet */
	__u64 id;    /* never used twice, unlike an inode or an address */
	__u64 told;  /* digest of the user and the tuple that were told last; 0: nothing was */
	__u64 user;  /* digest of the process that surely used it last */
	__u64 born_ns; /* nothing came in before; 0: older than we are */
	__u32 netns;
	__u32 taker; /* the thread whose receive, still under way, knows its peer */
	__u32 takes; /* receives under way that have something to tell */
	__u32 pad;
	/* What came in for an unconnected socket since its queue was empty. */
	__u32 waiting; /* enum procnet_waiting */
	__u32 is_noted; /* since its queue was empty, all that came in was noted */
	__u64 waiting_id; /* digest of the tuple, written after it */
	struct procnet_tuple waiting_tuple;
};

enum procnet_waiting {
	NOTHING = 0,
	ONE_FLOW = 1,
	SEVERAL_FLOWS = 2, /* whoever takes one may take any */
};

/* Who used a datagram socket for this tuple last. */
struct procnet_use {
	__u64 socket;
	struct procnet_tuple tuple;
};

/* Who used it last. */
struct procnet_user {
	__u64 user;
	/* When it was told, packets of others' still had to leave: of the socket, and of its port. */
	__u32 is_shared;
	__u32 is_behind;
	__u32 passes; /* calls that were not sure that it was told */
	__u32 pad;
};

struct procnet_port {
	__u32 netns;
	__u16 port;
	__u16 protocol;
};

/* The last socket of a port that was closed with packets that had to leave. */
struct procnet_closed {
	__u64 socket; /* its address, which may be another's by now */
	__s64 cookie;
	__u64 unsure_until_ns; /* one before it may still have some */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct procnet_socket);
} sockets SEC(".maps");

/*
 * What we know of a TCP connection. In a map of its own, because what a connection is charged for
 * most is making room for this, and clearing it away.
 *
 * The two directions have a user each. One that nobody has used yet is the other one's user's.
 */
struct procnet_connection {
	__u64 sender;   /* digest of the last one that sends, 0 if nobody does */
	__u64 receiver; /* the same of who takes what comes in */
	__u64 sender_start_ns;
	__u32 sender_tgid; /* 0 for a kernel thread */
	__u32 sender_uid;
	__u32 written;  /* tcp_sock.write_seq when the last call to send ended */
	__u8 is_opened; /* by the sender, who has sent nothing yet */
	__u8 is_older;  /* than we are: there may be users that we do not know */
	__u8 is_waiting; /* what others wrote may still leave, if only again: send_queues */
	__u8 is_shared;  /* the sender's bytes leave mixed with another's, nobody can tell which */
	__u8 is_closing;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct procnet_connection);
} connections SEC(".maps");

#define WRITERS 8
#define HAND_OVERS 64 /* powers of two */
#define SEVERAL WRITERS /* one of them, nobody can tell which */
#define NONE (WRITERS + 1)
#define BESIDES 16 /* it, and whoever's packets still wait below */

/* From this byte on another process has written what is in the send queue. */
struct procnet_hand_over {
	__u32 from_seq;
	__u16 writer;
	__u16 is_exact; /* not a later byte */
};

/*
 * Who has written what of a send queue: told when it leaves, and again when it is sent again. Few
 * connections ever have one; writer 0 is the one who was told last when it was made.
 */
struct procnet_send_queue {
	__u32 made; /* hand-overs */
	__u32 kept; /* of those: the last ones */
	__u32 first; /* the writer of what comes before them */
	__u32 told; /* the writer that the next packet counts for, if nobody is told before it */
	__u32 known;  /* writers; where they are too many or share the bytes, any of them */
	__u32 is_borrowed; /* the event of writer 0, who was told before */
	struct procnet_hand_over hand_overs[HAND_OVERS];
	__u64 users[WRITERS];
	struct procnet_owner_event events[WRITERS]; /* none yet: of layout 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct procnet_send_queue);
} send_queues SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, USERS);
	__type(key, struct procnet_use);
	__type(value, struct procnet_user);
} users SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CLOSED);
	__type(key, struct procnet_port);
	__type(value, struct procnet_closed);
} closed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PROCESS_RING_BYTES);
} processes SEC(".maps");

/* What found a ring full: events, processes. User space maps it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/*
 * Processes that were told, each in the place that its digest says. Two that share one are told
 * again by turns, which does no harm.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KNOWN);
	__type(key, __u32);
	__type(value, __u64);
} known SEC(".maps");

/*
 * Whether on_ingress() is attached: it costs each packet of the host something, and few programs
 * need it. User space attaches it when the first of them is told of, and then says so here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} noting SEC(".maps");

static __always_inline bool is_noting(void)
{
	__u32 first = 0, *value = bpf_map_lookup_elem(&noting, &first);

	return value && *value;
}

/* Processes ------------------------------------------------------------------------------------*/

#define MIX 0x9e3779b97f4a7c15ULL /* 2^64 / the golden ratio */

/* (pid, start) as one word, so that it is read and written in one piece. Never 0. */
static __always_inline __u64 current_user(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return (task->group_leader->start_boottime * MIX + (__u32)task->tgid) | 1;
}

static __always_inline bool is_kernel_thread(void)
{
	return bpf_get_current_task_btf()->flags & PROCNET_PF_KTHREAD;
}

static __always_inline void count_loss(__u32 which)
{
	__u64 *count = bpf_map_lookup_elem(&lost, &which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

#define LOST_EVENTS 0
#define LOST_PROCESSES 1

static __always_inline __u64 *place_of(__u64 user)
{
	__u32 place = (user >> 32) % KNOWN;

	return bpf_map_lookup_elem(&known, &place);
}

__noinline int tell_process(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct procnet_process *process = bpf_ringbuf_reserve(&processes, sizeof(*process), 0);

	if (!process) {
		count_loss(LOST_PROCESSES);
		return false;
	}
	procnet_describe(process, task);
	bpf_ringbuf_submit(process, 0);
	return true;
}

/* Before its first event, so that whoever has read the event finds the process, if it is one. */
static __always_inline void introduce(void)
{
	__u64 user = current_user();
	__u64 *place;

	if (is_kernel_thread())
		return;
	place = place_of(user);
	if (place && *place != user && tell_process())
		*place = user;
}

/* Who is known has another program now. */
SEC("tp_btf/sched_process_exec")
int on_exec(void *ctx)
{
	__u64 user = current_user();
	__u64 *place = place_of(user);

	if (place && *place == user)
		tell_process();
	return 0;
}

#define DESCRIPTORS 4096
#define DESCRIPTORS_BEFORE_5_17 128

struct search {
	struct file **files;
	__u64 inode;
	bool found;
};

/* 1 to end the search. */
static long look_at(__u32 descriptor, struct search *search)
{
	struct file *file = NULL;
	struct inode *inode;

	bpf_probe_read_kernel(&file, sizeof(file), &search->files[descriptor]);
	if (!file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	search->found = BPF_CORE_READ(inode, i_ino) == search->inode &&
			(BPF_CORE_READ(inode, i_mode) & PROCNET_S_IFMT) == PROCNET_S_IFSOCK;
	return search->found;
}

/* Does the current process have the socket open? (Only looked at when a socket has a new user.) */
static __noinline bool holds(__u64 inode)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct search search = {.files = BPF_CORE_READ(table, fd), .inode = inode};
	__u32 number = BPF_CORE_READ(table, max_fds);

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_loop)) { /* 5.17, e6f2dd0f8067 */
		bpf_loop(number < DESCRIPTORS ? number : DESCRIPTORS, look_at, &search, 0);
		return search.found;
	}
	for (__u32 i = 0; i < DESCRIPTORS_BEFORE_5_17; i++)
		if (i >= number || look_at(i, &search))
			break;
	return search.found;
}

/* Tuples ---------------------------------------------------------------------------------------*/

/*
 * A flow between IPv4 addresses, as it stands in a packet: its digest, which is that of its tuple,
 * is there at a third of the cost, and mostly it is all that is needed.
 */
struct ip4_flow {
	__be32 local_address;
	__be32 remote_address;
	__be16 local_port;
	__be16 remote_port;
};

static __always_inline __u64 mix(__u64 sum, __u64 word)
{
	return (sum ^ (sum >> 29) ^ word) * MIX;
}

static __always_inline __u64 digest_ip4(__u64 user, const struct ip4_flow *flow, __u8 protocol)
{
	__u64 sum = mix(user, (__u64)flow->local_address << 32 | flow->remote_address);
	__u64 ports = (__u64)flow->local_port << 16 | flow->remote_port;

	return mix(sum, ports << 8 | protocol) | 1;
}

static __always_inline __u64 digest(__u64 user, const struct procnet_tuple *tuple)
{
	const __u64 *words = (const __u64 *)tuple;
	__u64 sum = user;

	if (is_mapped(tuple->local_address) && is_mapped(tuple->remote_address)) {
		struct ip4_flow flow = {
			.local_address = ((const __u32 *)tuple->local_address)[3],
			.remote_address = ((const __u32 *)tuple->remote_address)[3],
			.local_port = bpf_htons(tuple->local_port),
			.remote_port = bpf_htons(tuple->remote_port),
		};

		return digest_ip4(user, &flow, tuple->protocol);
	}
	for (int i = 0; i < 5; i++)
		sum = mix(sum, words[i]);
	return sum | 1;
}

/* The fields of a socket that we want, read once. */
struct seen {
	struct procnet_tuple tuple;
	__u64 inode;
	__u64 born_ns; /* who has looked into its storage says it */
	__u32 netns;
	__u16 type;
	__u16 protocol;
};

/*
 * A field behind a pointer: a load if the verifier knows what it points to, else the helper, which
 * costs some 6 ns each time.
 */
#define FIELD(known, from, field) ((known) ? (from)->field : BPF_CORE_READ(from, field))

/* The beginning of struct sock_common, with all that is wanted of it (136 bytes long in 6.18). */
#define COMMON_BYTES 128
#define COPIED(copy, field, type)                                                                  \
	(*(type *)((copy) + bpf_core_field_offset(struct sock_common, field)))

/* The inode in socket:[...] of /proc/PID/fd; 0 while the socket has no file (not yet accepted). */
static __always_inline __u64 socket_inode(struct sock *sk, bool known)
{
	struct socket *socket = FIELD(known, sk, sk_socket);
	struct socket_alloc *both;

	if (!socket)
		return 0;
	both = (void *)socket - bpf_core_field_offset(struct socket_alloc, socket);
	return BPF_CORE_READ(both, vfs_inode.i_ino);
}

static __always_inline bool is_ping(const struct seen *seen)
{
	return seen->type == SOCK_DGRAM && is_icmp(seen->protocol);
}

/*
 * Without a peer neither address nor port: tcp_disconnect() after a refused connect leaves the
 * address behind. An ICMP id is both ports, once there is a peer.
 */
static __always_inline void settle_peer(struct seen *seen)
{
	struct procnet_tuple *tuple = &seen->tuple;
	bool has_port = seen->type != SOCK_RAW && !is_ping(seen);

	if (is_any(tuple->remote_address) || (has_port && !tuple->remote_port)) {
		__builtin_memset(tuple->remote_address, 0, 16);
		tuple->remote_port = 0;
	} else if (is_ping(seen)) {
		tuple->remote_port = tuple->local_port;
	}
	/* The kernel never sends from the group that a socket is bound to. */
	if (tuple->local_address[0] == 0xff)
		__builtin_memset(tuple->local_address, 0, 16);
	else if (is_mapped(tuple->local_address) && (tuple->local_address[12] & 0xf0) == 0xe0)
		set_ipv4(tuple->local_address, 0);
}

/*
 * What the socket itself says. An AF_INET6 one that talks IPv4 has mapped addresses there. `known`:
 * the verifier knows that it is a struct sock. Of a cgroup/sock_* program's context it does not, so
 * that what both families have is copied from there at once: a call costs some 6 ns.
 */
static __always_inline bool see(struct seen *to, struct sock *sk, bool known)
{
	struct procnet_tuple *tuple = &to->tuple;
	struct sock_common *common = &sk->__sk_common;
	__u8 copy[COMMON_BYTES];
	struct net *net;
	__u16 family, local_port;
	__be16 port;

	__builtin_memset(to, 0, sizeof(*to));
	if (known) {
		family = common->skc_family;
		net = common->skc_net.net;
		port = common->skc_dport;
		local_port = common->skc_num;
		to->type = sk->sk_type;
		to->protocol = sk->sk_protocol;
	} else {
		struct bpf_sock *context = (struct bpf_sock *)sk;

		if (bpf_probe_read_kernel(copy, COMMON_BYTES, common))
			return false;
		family = COPIED(copy, skc_family, __u16);
		net = COPIED(copy, skc_net, struct net *);
		port = COPIED(copy, skc_dport, __be16);
		local_port = COPIED(copy, skc_num, __u16);
		to->type = context->type;
		to->protocol = context->protocol;
	}
	if (family == AF_INET) {
		set_ipv4(tuple->local_address,
			 known ? common->skc_rcv_saddr : COPIED(copy, skc_rcv_saddr, __be32));
		set_ipv4(tuple->remote_address,
			 known ? common->skc_daddr : COPIED(copy, skc_daddr, __be32));
	} else if (family == AF_INET6) {
		struct in6_addr *local = (struct in6_addr *)tuple->local_address;
		struct in6_addr *remote = (struct in6_addr *)tuple->remote_address;

		if (known) {
			*local = common->skc_v6_rcv_saddr;
			*remote = common->skc_v6_daddr;
		} else {
			*local = COPIED(copy, skc_v6_rcv_saddr, struct in6_addr);
			*remote = COPIED(copy, skc_v6_daddr, struct in6_addr);
		}
	} else {
		return false;
	}
	to->inode = socket_inode(sk, known);
	to->netns = known ? net->ns.inum : BPF_CORE_READ(net, ns.inum);
	tuple->protocol = to->protocol;
	/* The port of a raw socket is its protocol (inet_create). */
	if (to->type != SOCK_RAW) {
		struct inet_sock *inet = (struct inet_sock *)sk;

		/* skc_num is 0 again when a reset has closed the connection. */
		tuple->local_port =
			local_port ? local_port : bpf_ntohs(BPF_CORE_READ(inet, inet_sport));
		tuple->remote_port = bpf_ntohs(port);
	}
	settle_peer(to);
	return true;
}

#include "socket_counts.h"

/* Events ---------------------------------------------------------------------------------------*/

/* What is counted from here on is counted apart from what was counted before. */
static __always_inline void next_turn(const struct procnet_tuple *tuple, __u8 kind)
{
	if (!is_any(tuple->local_address) && !is_any(tuple->remote_address))
		procnet_next_turn(procnet_turn_slot(tuple));
	else if (kind != PROCNET_CLOSE) /* who comes next is told again, with a tuple */
		procnet_next_turn(PROCNET_EPOCH);
}

/* Beside its kind, the flags of an event. */
#define AND_CLOSE (PROCNET_FLAG_CLOSES << 8)
#define SENDS (PROCNET_FLAG_SENDS << 8)
#define RECEIVES (PROCNET_FLAG_RECEIVES << 8)
#define LEFT (PROCNET_FLAG_LEFT << 8)
#define SHARED (PROCNET_FLAG_SHARED << 8)

static __always_inline bool is_elsewhere(__u32 netns)
{
	return procnet_only_netns && netns != procnet_only_netns;
}

/* Then it has no storage, no place in a table and no event. */
static __always_inline bool is_of_others(struct sock *sk)
{
	return procnet_only_netns && is_elsewhere(sk->__sk_common.skc_net.net->ns.inum);
}

static __always_inline void fill_event(struct procnet_owner_event *event, const struct seen *seen,
				       __u32 what)
{
	/* From the task: on 6.1 cgroup_skb programs have no other helper to tell who runs. */
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_struct *leader = task->group_leader;

	event->layout = PROCNET_LAYOUT;
	event->kind = what;
	event->flags = (task->flags & PROCNET_PF_KTHREAD ? PROCNET_FLAG_KERNEL : 0) | what >> 8;
	event->netns = seen->netns;
	event->time_ns = bpf_ktime_get_boot_ns();
	event->start_ns = leader->start_boottime;
	event->inode = seen->inode;
	event->cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	event->born_ns = seen->born_ns;
	event->tgid = task->tgid;
	event->uid = task->cred->uid.val;
	event->part_bytes = event->packet_bytes = 0;
	__builtin_memcpy(&event->tuple, &seen->tuple, sizeof(event->tuple));
	for (int i = 0; i < PROCNET_COMM_LEN; i++)
		event->comm[i] = leader->comm[i];
}

static __always_inline struct procnet_owner_event *reserve_event(void)
{
	struct procnet_owner_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		count_loss(LOST_EVENTS);
	return event;
}

/* NULL if the ring is full, which is counted. */
static __always_inline struct procnet_owner_event *make_event(const struct seen *seen, __u32 what)
{
	struct procnet_owner_event *event;

	introduce();
	event = reserve_event();
	if (event)
		fill_event(event, seen, what);
	return event;
}

/* False if the ring is full. */
__noinline int submit(const struct seen *seen, __u32 what)
{
	struct procnet_owner_event *event;

	if (!seen)
		return false;
	if (is_elsewhere(seen->netns))
		return true;
	event = make_event(seen, what);
	if (!event)
		return false;
	bpf_ringbuf_submit(event, 0);
	next_turn(&seen->tuple, what);
	return true;
}

/*
 * In softirq too: the event was made in the call of who is told. `part_bytes` are the process's own
 * of the `packet_bytes` of the packet that comes next.
 */
__noinline int submit_kept(const struct procnet_owner_event *kept, __u8 flags, __u32 part_bytes,
			   __u32 packet_bytes)
{
	struct procnet_owner_event *event;

	if (!kept)
		return false;
	event = reserve_event();
	if (!event)
		return false;
	__builtin_memcpy(event, kept, sizeof(*event));
	event->flags |= flags;
	event->time_ns = bpf_ktime_get_boot_ns();
	event->part_bytes = part_bytes;
	event->packet_bytes = packet_bytes;
	bpf_ringbuf_submit(event, 0);
	next_turn(&kept->tuple, PROCNET_SEND);
	return true;
}

/* Each weighs more, but an acknowledgement of TCP's 2: skb_set_tcp_pure_ack() (include/net/tcp.h). */
#define PACKET_BYTES 256

/*
 * Does anything that was sent by the socket still wait below it, in a queueing discipline or for the
 * device? Taps see a packet when the device takes it, and the socket pays for it until the device,
 * loopback, or the receiver behind a virtual cable has done with it: so this may say yes too long,
 * and never no too early.
 */
static __always_inline bool has_below(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_wmem_alloc.refs.counter) > PACKET_BYTES;
}

/* The same of its socket, but for this packet, which is just on its way there. */
static __always_inline bool has_others_below(struct __sk_buff *skb)
{
	/* The context is the kernel's own struct sk_buff; skb->sk may not be looked into. */
	struct sk_buff *own = (struct sk_buff *)skb;

	return BPF_CORE_READ(own, sk, sk_wmem_alloc.refs.counter) -
		       (int)BPF_CORE_READ(own, truesize) >
	       PACKET_BYTES;
}

#define QUEUED_NS 10000000000 /* procnet/ledger/claims.py */

/*
 * A socket is freed when its last packet has left, not before: if there is another one at its address,
 * or something else, it has nothing to send any more.
 */
static __always_inline bool is_leaving(const struct procnet_closed *of)
{
	struct sock *sk = (struct sock *)of->socket;

	if (bpf_ktime_get_boot_ns() < of->unsure_until_ns)
		return true;
	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) == of->cookie && has_below(sk);
}

static __always_inline struct procnet_port port_of(const struct seen *seen)
{
	return (struct procnet_port){seen->netns, seen->tuple.local_port, seen->tuple.protocol};
}

/* Does anything of a closed socket of this port still have to leave? If not any more, LEFT. */
static __always_inline bool waits_at_port(const struct seen *seen, __u32 *what)
{
	struct procnet_port port = port_of(seen);
	struct procnet_closed *of = bpf_map_lookup_elem(&closed, &port);

	if (of && is_leaving(of))
		return true;
	if (of)
		*what |= LEFT;
	return false;
}

/* A socket is closed, and what it has sent has not all left. */
static __always_inline void note_closed(struct sock *sk, const struct seen *seen)
{
	struct procnet_closed of = {
		.socket = (unsigned long)sk,
		.cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter),
	};
	struct procnet_port port = port_of(seen);
	struct procnet_closed *before = bpf_map_lookup_elem(&closed, &port);

	if (!of.cookie || (before && is_leaving(before)))
		of.unsure_until_ns = bpf_ktime_get_boot_ns() + QUEUED_NS;
	bpf_map_update_elem(&closed, &port, &of, BPF_ANY);
}

static __always_inline void note(struct procnet_socket *socket, const struct seen *seen)
{
	socket->inode = seen->inode;
	socket->netns = seen->netns;
	if (!socket->id)
		socket->id = bpf_ktime_get_boot_ns() * MIX + seen->inode;
}

static __always_inline struct procnet_user *last_user(struct procnet_socket *socket,
						      const struct procnet_tuple *tuple)
{
	struct procnet_user nobody = {}, *last;
	struct procnet_use use = {socket->id, *tuple};

	last = bpf_map_lookup_elem(&users, &use);
	if (last)
		return last;
	bpf_map_update_elem(&users, &use, &nobody, BPF_NOEXIST);
	return bpf_map_lookup_elem(&users, &use);
}

#define ACCESS_ONCE(of) (*(volatile typeof(of) *)&(of))

enum procnet_told { NOT_TOLD, TOLD_ALONE, TOLD_SHARED };

/* Shared as well if somebody has come by since there were so many `passes`. */
__noinline int submit_datagram(const struct seen *seen, __u32 what, struct procnet_user *last,
			       __u32 passes)
{
	struct procnet_owner_event *event;
	bool is_shared;

	if (!seen || !last)
		return NOT_TOLD;
	event = make_event(seen, what);
	if (!event)
		return NOT_TOLD;
	is_shared = event->flags & PROCNET_FLAG_SHARED || ACCESS_ONCE(last->passes) != passes;
	if (is_shared)
		event->flags |= PROCNET_FLAG_SHARED;
	bpf_ringbuf_submit(event, 0);
	next_turn(&seen->tuple, what);
	return is_shared ? TOLD_SHARED : TOLD_ALONE;
}

/*
 * Tells of a datagram socket, unless the same process was the last to use it for the same tuple. Where
 * packets of the one before still wait below, nobody can tell whose the next ones are that leave,
 * until one finds nothing there; so it is with those of a socket that had the port before. As long,
 * `told` is 0, and each comes by here. `skb` is what is sent.
 *
 * On another CPU another process may send at the same time. Either its packet is below already when
 * we look, or it finds `told` cleared and adds to `passes`: before we look at that for the last time,
 * and we share; or later, and then it finds us to be the last user, and tells of itself behind us. What
 * is in between are full barriers: an atomic addition, and the lock of the ring.
 */
static __always_inline void tell(void *sk, struct procnet_socket *socket, struct seen *seen,
				 __u64 user, __u32 what, struct __sk_buff *skb)
{
	__u64 told = digest(user, &seen->tuple), before;
	bool is_send = what == PROCNET_SEND, was_shared, is_shared = false, is_behind = false;
	struct procnet_user *last;
	__u32 passes;
	int result;

	if (socket->told == told)
		return;
	last = last_user(socket, &seen->tuple);
	if (!last)
		return;
	ACCESS_ONCE(socket->told) = 0;
	__sync_fetch_and_add(&last->passes, 1);
	passes = ACCESS_ONCE(last->passes);
	before = ACCESS_ONCE(last->user);
	if (before == user && !ACCESS_ONCE(last->is_shared) && !last->is_behind) {
		ACCESS_ONCE(socket->told) = told;
		return;
	}
	was_shared = ACCESS_ONCE(last->is_shared);
	if (before && (before != user || was_shared))
		is_shared = is_send ? has_others_below(skb) : has_below(sk);
	if (!before || last->is_behind)
		is_behind = waits_at_port(seen, &what);
	if (before == user && is_shared == was_shared && is_behind == last->is_behind)
		return;
	if (!before && is_send)
		bpf_get_socket_cookie(skb); /* gives it one, for note_closed() */
	ACCESS_ONCE(last->is_shared) = true;
	ACCESS_ONCE(last->user) = user;
	seen->born_ns = socket->born_ns;
	result = submit_datagram(seen, is_shared ? what | SHARED : what, last, passes);
	if (result == NOT_TOLD) {
		last->user = 0; /* it is told again at the next call */
		return;
	}
	split_counts(sk);
	last->is_shared = result == TOLD_SHARED;
	last->is_behind = is_behind;
	socket->told = result == TOLD_SHARED || is_behind ? 0 : told;
}

/* TCP: one tuple for each socket, so that the user alone says whether it was told. --------------*/

static __always_inline void set_sender(struct procnet_connection *connection, __u64 user)
{
	struct task_struct *task = bpf_get_current_task_btf();

	connection->sender = user;
	connection->sender_start_ns = task->group_leader->start_boottime;
	connection->sender_tgid = task->flags & PROCNET_PF_KTHREAD ? 0 : task->tgid;
	connection->sender_uid = task->cred->uid.val;
}

/* The connection is being opened: its port is chosen, the SYN not yet sent. */
SEC("sockops")
int on_tcp_connect(struct bpf_sock_ops *ctx)
{
	struct seen seen;
	struct tcp_sock *tcp;
	struct bpf_sock *bpf_sk;
	struct procnet_connection *connection;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	bpf_sk = ctx->sk;
	if (!bpf_sk)
		return 1;
	tcp = bpf_skc_to_tcp_sock(bpf_sk);
	if (!tcp || is_of_others((struct sock *)tcp))
		return 1;
	if (!see(&seen, (struct sock *)tcp, true) || !seen.tuple.remote_port)
		return 1;
	connection = create_connection(tcp);
	begin_counters_anew(tcp);
	/* Of the socket's last connection nobody has anything to do with this one. */
	if (connection)
		__builtin_memset(connection, 0, sizeof(*connection));
	if (submit(&seen, PROCNET_CONNECT) && connection) {
		set_sender(connection, current_user());
		connection->written = tcp->write_seq + 1; /* the SYN has a number too */
		connection->is_opened = true;
	}
	return 1;
}

static __always_inline bool see_connection(struct seen *seen, struct sock *sk)
{
	return !is_of_others(sk) && see(seen, sk, true) && seen->protocol == IPPROTO_TCP &&
	       seen->tuple.remote_port;
}

/* A worker of the kernel's (TLS, for one) acts for the socket's user. */
static __always_inline bool is_helped(const struct procnet_connection *connection)
{
	return (connection->sender || connection->receiver) && is_kernel_thread();
}

static __always_inline struct procnet_connection *make_connection(struct sock *sk)
{
	struct procnet_connection *connection =
		create_connection(sk);

	if (connection)
		connection->written = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	return connection;
}

/* Has nobody sent by it? */
static __always_inline bool is_unsent(const struct procnet_connection *connection)
{
	return connection->is_opened || (!connection->sender && !connection->is_older);
}

/*
 * What the sender has left in the queue is still its own. The first taker is told even if it is the
 * sender: until then nobody knows whose it is what comes in.
 */
static __always_inline int receive_tcp(struct sock *sk)
{
	struct procnet_connection *connection = connection_of(sk);
	__u64 user = current_user();
	__u32 what = PROCNET_RECEIVE | RECEIVES;
	struct seen seen;

	if (connection && (connection->receiver == user || is_helped(connection)))
		return 0;
	if (!see_connection(&seen, sk))
		return 0;
	if (!connection)
		connection = make_connection(sk);
	if (!connection)
		return 0;
	if (is_unsent(connection))
		what |= SENDS;
	if (!submit(&seen, what))
		return 0;
	split_counts(sk);
	connection->receiver = user;
	if (connection->is_opened)
		connection->sender = connection->is_opened = 0;
	return 0;
}

static __always_inline bool is_before(__u32 seq, __u32 other)
{
	return (__s32)(seq - other) < 0;
}

static __always_inline void begin_queue(struct procnet_send_queue *queue,
					const struct procnet_connection *connection)
{
	queue->made = queue->kept = queue->first = queue->told = 0;
	queue->known = 1;
	queue->is_borrowed = false;
	queue->users[0] = connection->is_shared ? 0 : connection->sender;
	for (int i = 1; i < WRITERS; i++)
		queue->users[i] = 0;
	for (int i = 0; i < WRITERS; i++)
		queue->events[i].layout = 0;
}

/* SEVERAL, if it is none of them. */
static __always_inline __u32 writer_of(const struct procnet_send_queue *queue, __u64 user)
{
	for (__u32 i = 0; i < WRITERS; i++)
		if (queue->users[i] == user)
			return i;
	return SEVERAL;
}

static __always_inline struct procnet_hand_over *last_of(struct procnet_send_queue *queue)
{
	return &queue->hand_overs[(queue->made - 1) % HAND_OVERS];
}

/* False if there is no room for one more. What has been sent once makes room. */
static __always_inline bool has_room(struct procnet_send_queue *queue, __u32 sent_seq)
{
	if (queue->kept < HAND_OVERS)
		return true;
	if (is_before(sent_seq, queue->hand_overs[(queue->made + 1) % HAND_OVERS].from_seq))
		return false;
	queue->kept--;
	queue->first = SEVERAL;
	return true;
}

/* The writer who was told before there was a queue; `current` is the one who comes behind it. */
static __always_inline void keep_first(struct procnet_send_queue *queue,
				       const struct procnet_connection *connection,
				       const struct seen *seen, __u32 what)
{
	struct procnet_owner_event *event = &queue->events[0];

	if (!queue->users[0] || !connection->sender_tgid || event->layout)
		return;
	queue->is_borrowed = true;
	fill_event(event, seen, what);
	event->flags &= ~PROCNET_FLAG_KERNEL;
	event->start_ns = connection->sender_start_ns;
	event->tgid = connection->sender_tgid;
	event->uid = connection->sender_uid;
	event->comm[0] = 0; /* known, as it was told */
}

/* False if there is no room for another writer, or another hand-over. */
static __always_inline bool hand_over(struct procnet_send_queue *queue, const struct seen *seen,
				      __u32 what, struct procnet_hand_over from, __u32 sent_seq)
{
	__u64 user = current_user();
	__u32 writer = writer_of(queue, user);

	if (queue->kept && last_of(queue)->from_seq == from.from_seq && from.is_exact) {
		/* Who was about to write has written nothing. */
		queue->made--;
		queue->kept--;
	}
	if (writer == SEVERAL)
		writer = queue->known;
	if (writer >= WRITERS || !has_room(queue, sent_seq))
		return false;
	if (!writer)
		queue->is_borrowed = false;
	if (!writer || !queue->events[writer].layout) {
		introduce();
		/* Whether it receives is another question when it is told. */
		fill_event(&queue->events[writer], seen, what & ~RECEIVES);
	}
	if (writer == queue->known) {
		queue->users[writer] = user;
		queue->known++;
	}
	from.writer = writer;
	queue->hand_overs[queue->made++ % HAND_OVERS] = from;
	queue->kept++;
	return true;
}

/* All that have anything in the queue are told that nobody can say what is whose. */
__noinline int share(struct procnet_send_queue *queue, __u8 flags)
{
	if (!queue)
		return false;
	for (__u32 i = 0; i < WRITERS; i++)
		if (queue->events[i].layout && (i || !queue->is_borrowed) &&
		    !submit_kept(&queue->events[i], flags | PROCNET_FLAG_SHARED, 0, 0))
			return false;
	return true;
}

/* Is the user told already to share the queue with others? */
static __always_inline bool is_sharer(struct procnet_send_queue *queue, __u64 user)
{
	if (writer_of(queue, user) != SEVERAL)
		return true;
	queue->users[queue->known++ % WRITERS] = user;
	return false;
}

/*
 * A connection with bytes of another's in its queue. Who comes behind them is told when that leaves;
 * where it cannot be said what is whose, it is told now that nobody can, until all of it was sent.
 * Outside of the socket's lock somebody else may come between us and the queue: one hand-over that has
 * not left is all that is believed.
 */
static __always_inline void queue_behind(struct sock *sk, struct procnet_connection *connection,
					 const struct seen *seen, __u32 what,
					 struct procnet_hand_over from, bool is_busy)
{
	__u64 user = current_user();
	__u32 sent_seq = BPF_CORE_READ((struct tcp_sock *)sk, snd_nxt);
	bool is_sent = !is_busy && !is_before(sent_seq, from.from_seq), is_believed;
	struct procnet_send_queue *queue =
		bpf_sk_storage_get(&send_queues, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (queue && (is_sent || !connection->is_shared)) {
		if (!connection->is_waiting || connection->is_shared)
			begin_queue(queue, connection);
		is_believed = from.is_exact || is_sent || !queue->kept ||
			      is_before(last_of(queue)->from_seq, sent_seq);
		if (!is_busy && is_believed && hand_over(queue, seen, what, from, sent_seq)) {
			if (!connection->is_waiting || connection->is_shared)
				keep_first(queue, connection, seen, what & ~RECEIVES);
			set_sender(connection, user);
			connection->is_waiting = true;
			connection->is_shared = false;
			return;
		}
		connection->is_waiting = !share(queue, 0);
		connection->is_shared = true;
		if (connection->is_waiting) {
			/* The ring is full: told when it leaves. */
			queue->kept = 0;
			queue->first = SEVERAL;
			queue->told = NONE;
		}
		split_counts(sk);
	}
	if ((queue && is_sharer(queue, user)) || submit(seen, what | SHARED)) {
		split_counts(sk);
		set_sender(connection, user);
		connection->is_shared = true;
	}
}

/* What the caller writes is `from` there on. `is_busy`: others may write before it, or behind. */
static __always_inline int send_tcp(struct sock *sk, struct procnet_hand_over from, bool is_busy)
{
	struct procnet_connection *connection = connection_of(sk);
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u64 user = current_user();
	__u32 what = PROCNET_SEND | SENDS;
	bool is_alone;
	struct seen seen;

	if (connection && is_helped(connection))
		return 0;
	if (!see_connection(&seen, sk))
		return 0;
	if (!connection)
		connection = make_connection(sk);
	if (!connection)
		return 0;
	if (!connection->receiver && !connection->is_older)
		what |= RECEIVES;
	if (is_unsent(connection)) {
		bool is_told = connection->is_opened ? connection->sender == user :
						       connection->receiver == user;

		is_alone = is_told || submit(&seen, what);
	} else {
		is_alone = !is_busy && !is_before(BPF_CORE_READ(tcp, snd_una), from.from_seq) &&
			   submit(&seen, what);
	}
	connection->is_opened = false;
	/* What finds the ring full is told when its bytes leave, which may be when nothing is lost. */
	if (!is_alone) {
		queue_behind(sk, connection, &seen, what, from, is_busy);
		return 0;
	}
	split_counts(sk);
	set_sender(connection, user);
	connection->is_waiting = connection->is_shared = false;
	return 0;
}

static __always_inline bool is_sender(struct sock *sk)
{
	struct procnet_connection *connection = connection_of(sk);

	return connection && connection->sender == current_user() && !connection->is_opened &&
	       !connection->is_shared;
}

/*
 * Before bytes are put into the send queue, and again when the caller had to wait for room, without the
 * lock (6.16, 8127837aae8f).
 */
SEC("tp_btf/tcp_sendmsg_locked")
int BPF_PROG(on_tcp_sendmsg_locked, struct sock *sk)
{
	struct procnet_hand_over from = {.is_exact = true};

	if (is_sender(sk))
		return 0;
	from.from_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	return send_tcp(sk, from, false);
}

/*
 * At the end of the call; for a kernel without the one above, with on_egress_and_tcp(). Other
 * families come here too.
 */
SEC("tp_btf/sock_send_length")
int BPF_PROG(on_tcp_send_length, struct sock *sk, int result)
{
	struct procnet_hand_over from = {};
	struct procnet_connection *connection;
	__u32 write_seq;

	if (result <= 0 || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	write_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	connection = connection_of(sk);
	from.from_seq = connection ? connection->written : write_seq;
	if (!is_sender(sk))
		send_tcp(sk, from, sk->sk_write_pending);
	connection = connection_of(sk);
	if (connection)
		connection->written = write_seq;
	return 0;
}

/*
 * The first data of a new sender leaves before its call ends. Where a process holds the lock of the
 * socket, no timer and no interrupt sends, but `current` does; if there are more bytes in the queue
 * than when the last call to send ended, it has put them there, unless another waits in its call.
 */
static __noinline void send_at_egress(struct bpf_sock *sk)
{
	struct tcp_sock *tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	struct sock *sock = (struct sock *)tcp;
	struct procnet_hand_over from = {};
	struct procnet_connection *connection;

	if (!tcp || !sock->sk_lock.owned || sock->sk_write_pending)
		return;
	connection = connection_of(tcp);
	/* Who closes has been told; a FIN is no data. */
	if (!connection || connection->is_closing || connection->written == tcp->write_seq)
		return;
	from.from_seq = connection->written;
	connection->written = tcp->write_seq;
	if (!is_sender(sock))
		send_tcp(sock, from, false);
}

/* Whoever else holds the lock may be about to write. */
static __always_inline int send_unlocked(struct sock *sk)
{
	struct procnet_hand_over from = {};

	if (is_sender(sk))
		return 0;
	from.from_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	return send_tcp(sk, from, sk->sk_write_pending || sk->sk_lock.owned);
}

SEC("fentry/tcp_sendmsg")
int BPF_PROG(on_tcp_sendmsg, struct sock *sk)
{
	return send_unlocked(sk);
}

/* sendfile() and splice(), until they became tcp_sendmsg() (6.5, dc97391e6610). */
SEC("fentry/tcp_sendpage")
int BPF_PROG(on_tcp_sendpage, struct sock *sk)
{
	return send_unlocked(sk);
}

/*
 * Data was taken, by recv() or splice(). A kernel user of the socket (strparser, sockmap) takes it
 * in softirq, where the socket is not locked by a process and `current` is anybody.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(on_tcp_receive, struct sock *sk)
{
	if (!sk->sk_lock.owned)
		return 0;
	return receive_tcp(sk);
}

/*
 * accept() says who may use the connection; not noted as a use, so that the first to do so, be it
 * the acceptor or a child of it, is told as well. A socket that has storage was used, told or older
 * than we are.
 */
static __always_inline void accept_tcp(struct sock *sk)
{
	struct seen seen;

	if (!see_connection(&seen, sk))
		return;
	make_connection(sk);
	if (submit(&seen, PROCNET_ACCEPT))
		split_counts(sk);
}

/* accept() calls it for the address of the peer, if its caller wants that. */
static __always_inline int on_peer_name(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tcp;

	if (!sk || connection_of(sk))
		return 1;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp)
		accept_tcp((struct sock *)tcp);
	return 1;
}

SEC("cgroup/getpeername4")
int on_getpeername4(struct bpf_sock_addr *ctx)
{
	return on_peer_name(ctx);
}

SEC("cgroup/getpeername6")
int on_getpeername6(struct bpf_sock_addr *ctx)
{
	return on_peer_name(ctx);
}

/* sock_graft() gives the connection to the file of its acceptor, whom nobody can have told yet. */
SEC("fentry/security_sock_graft")
int BPF_PROG(on_sock_graft, struct sock *sk)
{
	accept_tcp(sk);
	return 0;
}

/* Datagrams and raw packets --------------------------------------------------------------------*/

/* The file is there, addresses are not. TCP needs none of it: no storage, no cost. */
SEC("cgroup/sock_create")
int on_create(struct bpf_sock *ctx)
{
	struct procnet_socket *socket;
	struct seen seen;

	if (ctx->type != SOCK_DGRAM && ctx->type != SOCK_RAW)
		return 1;
	/* The context is the kernel's own struct sock. */
	if (!see(&seen, (struct sock *)ctx, false) || is_elsewhere(seen.netns))
		return 1;
	socket = bpf_sk_storage_get(&sockets, ctx, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (socket) {
		note(socket, &seen);
		socket->user = current_user();
		socket->is_noted = is_noting();
		socket->born_ns = bpf_ktime_get_boot_ns();
	}
	return 1;
}

/*
 * What came in before was refused, or another socket's. Of TCP it is asked who may listen, at a port
 * of its own choice.
 */
static __always_inline int bind(struct bpf_sock_addr *ctx)
{
	struct procnet_socket *socket;
	struct bpf_sock *sk = ctx->sk;
	__u8 copy[COMMON_BYTES];
	__u64 flags = 0;

	if (!sk || sk->src_port)
		return 1;
	if (sk->type == SOCK_STREAM) {
		/* The kernel's own struct sock, but no pointer into it is allowed. */
		if (!ctx->user_port || bpf_probe_read_kernel(copy, COMMON_BYTES, sk) ||
		    is_elsewhere(BPF_CORE_READ(COPIED(copy, skc_net, struct net *), ns.inum)))
			return 1;
		flags = BPF_SK_STORAGE_GET_F_CREATE;
	}
	socket = bpf_sk_storage_get(&sockets, sk, NULL, flags);
	if (socket)
		socket->born_ns = bpf_ktime_get_boot_ns();
	return 1;
}

SEC("cgroup/bind4")
int on_bind4(struct bpf_sock_addr *ctx)
{
	return bind(ctx);
}

SEC("cgroup/bind6")
int on_bind6(struct bpf_sock_addr *ctx)
{
	return bind(ctx);
}

#define EXTENSIONS 6

/* Where the transport header is; 0 for a later fragment and for what we cannot follow. */
static __always_inline __u32 skip_extensions(struct __sk_buff *skb, __u8 *next)
{
	__u32 at = sizeof(struct ip6_header);
	__u8 head[4];

	for (int i = 0; i < EXTENSIONS; i++) {
		if (!is_extension(*next))
			return at;
		if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return 0;
		if (*next == IPPROTO_FRAGMENT && ((head[2] << 8 | head[3]) & 0xfff8))
			return 0;
		at += extension_bytes(*next, head[1]);
		*next = head[0];
	}
	return 0;
}

/* ICMP: the id of an echo as both ports. */
static __always_inline void read_ports(struct __sk_buff *skb, __u32 at, struct procnet_tuple *tuple)
{
	__be16 words[4];

	if (is_icmp(tuple->protocol)) {
		if (!bpf_skb_load_bytes(skb, at, words, sizeof(words)) &&
		    is_echo(tuple->protocol, *(__u8 *)words))
			tuple->local_port = tuple->remote_port = bpf_ntohs(words[2]);
		return;
	}
	if (!has_ports(tuple->protocol))
		return;
	if (bpf_skb_load_bytes(skb, at, words, 4))
		return;
	tuple->local_port = bpf_ntohs(words[0]);
	tuple->remote_port = bpf_ntohs(words[1]);
}

/* The common case without a helper: UDP over IPv4 without options, headers in one piece. */
static __always_inline bool read_plain(struct __sk_buff *skb, struct ip4_flow *sent)
{
	struct ip4_header *ip = (void *)(long)skb->data;
	__be16 *ports = (void *)(ip + 1);

	if ((void *)(ports + 2) > (void *)(long)skb->data_end)
		return false;
	if (ip->version_and_words != 0x45 || ip->protocol != IPPROTO_UDP ||
	    ip->fragment & bpf_htons(0x1fff))
		return false;
	sent->local_address = ip->source;
	sent->remote_address = ip->destination;
	sent->local_port = ports[0];
	sent->remote_port = ports[1];
	return true;
}

/* The tuple as the sender has it. */
static __always_inline bool read_packet(struct __sk_buff *skb, struct procnet_tuple *tuple)
{
	__u32 at;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ip4_header ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return false;
		if (ip.fragment & bpf_htons(0x1fff))
			return false;
		set_ipv4(tuple->local_address, ip.source);
		set_ipv4(tuple->remote_address, ip.destination);
		tuple->protocol = ip.protocol;
		at = (ip.version_and_words & 15) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ip6_header ip;
		__u8 next;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return false;
		__builtin_memcpy(tuple->local_address, ip.source, 16);
		__builtin_memcpy(tuple->remote_address, ip.destination, 16);
		next = ip.next;
		at = skip_extensions(skb, &next);
		if (!at)
			return false;
		tuple->protocol = next;
	} else {
		return false;
	}
	read_ports(skb, at, tuple);
	return true;
}

/*
 * The first packet has the tuple that the route chose, before any tap sees it. `current` is the
 * sender where the packet comes straight from its call, which is so for UDP, ping and raw sockets
 * but not for what was queued (NFQUEUE) or sent by the kernel through the socket (L2TP): a process
 * that is not yet known to use the socket must have it open.
 */
static __noinline int send_packet(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct procnet_socket *socket;
	struct seen seen = {};
	struct ip4_flow flow;
	__u64 user;

	socket = sk ? bpf_sk_storage_get(&sockets, sk, NULL, 0) : NULL;
	if (!socket)
		return 1;
	user = current_user();
	if (read_plain(skb, &flow) && socket->told == digest_ip4(user, &flow, IPPROTO_UDP))
		return 1;
	if (!read_packet(skb, &seen.tuple))
		return 1;
	/* Around it, by a tunnel or IPsec, is another protocol, at another time. */
	if (sk->type == SOCK_DGRAM && seen.tuple.protocol != sk->protocol)
		return 1;
	if (user != socket->user) {
		if (!holds(socket->inode))
			return 1;
		socket->user = user;
	}
	seen.inode = socket->inode;
	seen.netns = socket->netns;
	tell(sk, socket, &seen, user, PROCNET_SEND, skb);
	return 1;
}

static __always_inline bool has_packets(struct bpf_sock *sk)
{
	return sk->type == SOCK_DGRAM || sk->type == SOCK_RAW;
}

struct segment {
	__u32 seq;
	__u32 end_seq;
	bool is_next; /* nothing else of the socket leaves before it */
};

static __always_inline bool read_segment(struct __sk_buff *skb, struct segment *segment)
{
	__u8 first, next, words;
	__u32 at;

	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		return false;
	at = (first & 15) * 4;
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, offsetof(struct ip6_header, next), &next, 1))
			return false;
		at = skip_extensions(skb, &next);
	} else if (bpf_skb_load_bytes(skb, offsetof(struct ip4_header, protocol), &next, 1)) {
		return false;
	}
	if (!at || next != IPPROTO_TCP || bpf_skb_load_bytes(skb, at + 4, &segment->seq, 4) ||
	    bpf_skb_load_bytes(skb, at + 12, &words, 1))
		return false;
	segment->seq = bpf_ntohl(segment->seq);
	segment->end_seq = segment->seq + skb->len - at - (words >> 4) * 4;
	return true;
}

/* The first hand-over behind a byte. (Not static: the verifier looks at it once.) */
__noinline __u32 next_behind(struct procnet_send_queue *queue, __u32 seq)
{
	__u32 next;

	if (!queue)
		return 0;
	next = queue->made - queue->kept;
	for (int n = 0; n < HAND_OVERS && next != queue->made; n++, next++)
		if (is_before(seq, queue->hand_overs[next % HAND_OVERS].from_seq))
			break;
	return next;
}

/* A packet with bytes of several: each of the others is told how many are its own. */
__noinline int tell_parts(struct procnet_send_queue *queue, const struct segment *segment,
			  __u32 next, __u32 writer, __u8 flags)
{
	__u32 bytes[WRITERS] = {}, others = 0, packet_bytes;
	bool is_exact;

	if (!queue || !segment)
		return false;
	is_exact = segment->is_next;
	packet_bytes = segment->end_seq - segment->seq;
	for (__u32 i = next, n = 0; i != queue->made && n < HAND_OVERS; i++, n++) {
		struct procnet_hand_over *from = &queue->hand_overs[i % HAND_OVERS];
		__u32 until = queue->hand_overs[(i + 1) % HAND_OVERS].from_seq;

		if (!is_before(from->from_seq, segment->end_seq))
			break;
		if (i + 1 == queue->made || is_before(segment->end_seq, until))
			until = segment->end_seq;
		if (from->writer == writer || until == from->from_seq)
			continue;
		others |= 1 << (from->writer % WRITERS);
		bytes[from->writer % WRITERS] += until - from->from_seq;
		is_exact = is_exact && from->is_exact;
	}
	for (__u32 i = 0; i < WRITERS; i++)
		if (others & 1 << i && !submit_kept(&queue->events[i], flags | PROCNET_FLAG_SHARED,
						   is_exact ? bytes[i] : 0, is_exact ? packet_bytes : 0))
			return false;
	return others != 0;
}

/* Has anything left the socket of others that is not acknowledged? What is, has left the host. */
static __always_inline bool may_wait_below(struct procnet_send_queue *queue, struct tcp_sock *tcp,
					   __u32 next)
{
	__u32 behind = queue->hand_overs[next % HAND_OVERS].from_seq;
	__u32 since = queue->hand_overs[(next - 1) % HAND_OVERS].from_seq;

	if (next != queue->made && is_before(behind, tcp->snd_nxt))
		return true;
	return next != queue->made - queue->kept && is_before(tcp->snd_una, since);
}

/*
 * Whose bytes has this packet, where several have written what may leave? Not in line: few packets
 * come by, and the stack of who counts them is full.
 */
static __noinline void hand_over_waiting(struct __sk_buff *skb, struct bpf_sock *sk,
					 struct procnet_connection *connection)
{
	struct procnet_send_queue *queue;
	struct segment segment = {};
	struct tcp_sock *tcp;
	__u32 next, writer, tells;
	__u8 closes, flags;

	queue = bpf_sk_storage_get(&send_queues, sk, NULL, 0);
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!queue || !tcp)
		return;
	/* What leaves after the close has nobody else to close it. */
	closes = flags = connection->is_closing ? PROCNET_FLAG_CLOSES : 0;
	if (!read_segment(skb, &segment)) {
		/* Around it is IPsec. */
		next = queue->made;
		writer = SEVERAL;
	} else if (segment.seq == segment.end_seq) {
		return;
	} else {
		next = next_behind(queue, segment.seq);
		writer = queue->first;
		if (next != queue->made - queue->kept)
			writer = queue->hand_overs[(next - 1) % HAND_OVERS].writer;
		/* It was told before there was a queue, and cannot be told again. */
		if (writer != queue->told && !queue->events[writer % WRITERS].layout)
			writer = SEVERAL;
	}
	segment.is_next = !has_others_below(skb);
	tells = writer;
	if (writer < WRITERS && writer != queue->told && !segment.is_next &&
	    may_wait_below(queue, tcp, next))
		tells |= BESIDES;
	if (tells != queue->told) {
		if (tells & BESIDES)
			flags |= PROCNET_FLAG_SHARED;
		else if (!connection->receiver && !connection->is_older)
			flags |= PROCNET_FLAG_RECEIVES;
		if (!(writer < WRITERS ? submit_kept(&queue->events[writer], flags, 0, 0) :
					 share(queue, closes)))
			return;
		queue->told = tells;
		split_counts(sk);
	}
	if (next != queue->made) {
		if (tell_parts(queue, &segment, next, writer, closes)) {
			queue->told = NONE;
			split_counts(sk);
		}
	} else if (tells < WRITERS && !is_before(tcp->snd_una, last_of(queue)->from_seq)) {
		/* What the others wrote is acknowledged. */
		connection->is_waiting = false;
	}
}

static __always_inline void hand_over_at(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct procnet_connection *connection = connection_of(sk);

	if (connection && connection->is_waiting)
		hand_over_waiting(skb, sk, connection);
}

static __always_inline bool is_tcp(struct bpf_sock *sk)
{
	return sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP;
}

/* A raw socket of such a protocol gets copies of what others asked for, or the kernel. */
static __always_inline bool is_spoken_by_others(__u16 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_IGMP || protocol == IPPROTO_TCP ||
	       protocol == IPPROTO_UDP || protocol == IPPROTO_ICMPV6 ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_UDPLITE;
}

#include "socket_packets.h"

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	if (has_packets(sk))
		send_packet(skb, sk);
	else if (is_tcp(sk))
		hand_over_at(skb, sk);
	count_at(skb, sk, true);
	return 1;
}

SEC("cgroup_skb/egress")
int on_egress_and_tcp(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	if (has_packets(sk))
		send_packet(skb, sk);
	if (is_tcp(sk)) {
		send_at_egress(sk);
		hand_over_at(skb, sk);
	}
	count_at(skb, sk, true);
	return 1;
}

static __always_inline bool is_datagram(__u16 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE;
}

#define ESTABLISHED 1 /* include/net/tcp_states.h */

/*
 * Softirq: names nobody. Notes the flow of what is put into the queue, for on_receive_length(),
 * which sees the taker of a datagram but not the datagram.
 */
SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	struct procnet_socket *socket;
	struct procnet_tuple sent = {}, tuple;
	struct bpf_sock *sk = skb->sk;
	struct ip4_flow flow;
	__u64 id;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SOCK_DGRAM || !is_datagram(sk->protocol) || sk->state == ESTABLISHED)
		return 1;
	socket = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!socket || !socket->is_noted || socket->waiting == SEVERAL_FLOWS)
		return 1;
	if (socket->waiting == ONE_FLOW && read_plain(skb, &flow)) {
		struct ip4_flow received = {flow.remote_address, flow.local_address,
					    flow.remote_port, flow.local_port};

		if (socket->waiting_id == digest_ip4(0, &received, IPPROTO_UDP))
			return 1;
	}
	if (!read_packet(skb, &sent))
		return 1;
	tuple = sent;
	__builtin_memcpy(tuple.local_address, sent.remote_address, 16);
	__builtin_memcpy(tuple.remote_address, sent.local_address, 16);
	tuple.local_port = sent.remote_port;
	tuple.remote_port = sent.local_port;
	id = digest(0, &tuple);
	if (socket->waiting == NOTHING) {
		socket->waiting_tuple = tuple;
		barrier();
		socket->waiting_id = id;
		socket->waiting = ONE_FLOW;
	} else if (socket->waiting_id != id) {
		socket->waiting = SEVERAL_FLOWS;
	}
	return 1;
}

/* Has everything been taken that had come in? */
static __always_inline void settle_queue(struct procnet_socket *socket, struct sock *sk)
{
	struct udp_sock *udp = (struct udp_sock *)sk;

	if (!is_noting() || (socket->is_noted && !socket->waiting))
		return;
	if (sk->sk_receive_queue.qlen || BPF_CORE_READ(udp, reader_queue.qlen))
		return;
	socket->waiting = NOTHING;
	socket->is_noted = true;
}

/* Whose datagram a thread is about to have, if nobody was told of that yet. */
struct procnet_taking {
	__u64 id; /* of the socket */
	struct procnet_tuple tuple;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct procnet_taking);
} under_way SEC(".maps");

/* What on_take() has kept for the end of the call. */
static __always_inline bool end_take(struct seen *seen, struct procnet_socket *socket)
{
	__u32 thread = bpf_get_current_task_btf()->pid;
	struct procnet_taking *taking = bpf_map_lookup_elem(&under_way, &thread);

	if (!taking || taking->id != socket->id)
		return false;
	__builtin_memset(seen, 0, sizeof(*seen));
	seen->tuple = taking->tuple;
	seen->inode = socket->inode;
	seen->netns = socket->netns;
	bpf_map_delete_elem(&under_way, &thread);
	__sync_fetch_and_add(&socket->takes, -1);
	return true;
}

/*
 * The peer of the datagram that a process is given, if it wants to know. Whether it takes it or only
 * looks (MSG_PEEK) is known at the end of the call.
 */
static __always_inline int on_take(struct bpf_sock_addr *ctx, const __u8 *remote)
{
	struct bpf_sock *sk = ctx->sk;
	struct procnet_socket *socket;
	struct procnet_taking taking = {};
	struct seen seen = {};
	__u64 user = current_user();
	__u32 thread = bpf_get_current_task_btf()->pid;

	if (!sk)
		return 1;
	socket = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!socket)
		return 1;
	socket->taker = thread;
	seen.type = SOCK_DGRAM;
	seen.protocol = seen.tuple.protocol = sk->protocol;
	__builtin_memcpy(seen.tuple.remote_address, remote, 16);
	if (is_mapped(remote)) {
		set_ipv4(seen.tuple.local_address, sk->src_ip4);
	} else {
		__u32 *local = (__u32 *)seen.tuple.local_address;
		/* Each a load from the context: no pointer into it is allowed. */
		volatile struct bpf_sock *context = sk;

		local[0] = context->src_ip6[0];
		local[1] = context->src_ip6[1];
		local[2] = context->src_ip6[2];
		local[3] = context->src_ip6[3];
	}
	seen.tuple.local_port = sk->src_port;
	seen.tuple.remote_port = bpf_ntohs(ctx->user_port);
	settle_peer(&seen);
	taking.id = socket->id;
	taking.tuple = seen.tuple;
	if (socket->told != digest(user, &taking.tuple) &&
	    !bpf_map_update_elem(&under_way, &thread, &taking, BPF_ANY))
		__sync_fetch_and_add(&socket->takes, 1);
	return 1;
}

SEC("cgroup/recvmsg4")
int on_recvmsg4(struct bpf_sock_addr *ctx)
{
	__u8 remote[16];

	set_ipv4(remote, ctx->user_ip4);
	return on_take(ctx, remote);
}

SEC("cgroup/recvmsg6")
int on_recvmsg6(struct bpf_sock_addr *ctx)
{
	__u32 remote[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

	return on_take(ctx, (__u8 *)remote);
}

/* A raw socket claims nothing of what it may only have a copy of. */
static __always_inline int take(struct sock *sk, int result, int flags, bool with_udp)
{
	struct procnet_socket *socket;
	struct seen seen;
	__u16 protocol = sk->sk_protocol;
	bool known = false, takes;
	__u64 user;

	if (sk->sk_type != SOCK_DGRAM && sk->sk_type != SOCK_RAW)
		return 0;
	if (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6)
		return 0;
	if (sk->sk_type == SOCK_RAW && is_spoken_by_others(protocol))
		return 0;
	if (!with_udp && sk->sk_type == SOCK_DGRAM && protocol == IPPROTO_UDP)
		return 0;
	if (is_of_others(sk))
		return 0;
	user = current_user();
	socket = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return 0;
	takes = result >= 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)) && !is_kernel_thread();
	if (socket->takes && end_take(&seen, socket)) {
		if (takes)
			tell(sk, socket, &seen, user, PROCNET_RECEIVE, NULL);
		known = true;
	}
	if (known || socket->taker == bpf_get_current_task_btf()->pid) {
		socket->taker = 0;
		if (takes)
			socket->user = user;
		settle_queue(socket, sk);
		return 0;
	}
	if (!takes)
		return 0;
	if (!see(&seen, sk, true))
		return 0;
	note(socket, &seen);
	if (is_datagram(protocol) && !seen.tuple.remote_port) {
		struct procnet_tuple tuple = socket->waiting_tuple;

		/* Written by another CPU meanwhile, it is not what its digest says. */
		if (socket->waiting == ONE_FLOW && digest(0, &tuple) == socket->waiting_id)
			seen.tuple = tuple;
		settle_queue(socket, sk);
	}
	tell(sk, socket, &seen, user, PROCNET_RECEIVE, NULL);
	socket->user = user;
	return 0;
}

/* Who has taken something, at the end of the call (6.3). */
SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_receive_length, struct sock *sk, int result, int flags)
{
	return take(sk, result, flags, true);
}

/* The same where on_skb_consume_udp() tells of datagrams. */
SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_receive_length_but_udp, struct sock *sk, int result, int flags)
{
	return take(sk, result, flags, false);
}

/*
 * The taker of a datagram, with the tuple that the datagram has. Who only peeks has the negative of
 * its length (627d2d6b5500); of an empty one, that the queue keeps it shows in the references.
 */
SEC("fentry/skb_consume_udp")
int BPF_PROG(on_skb_consume_udp, struct sock *sk, struct sk_buff *skb, int length)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *network = head + BPF_CORE_READ(skb, network_header);
	unsigned char *transport = head + BPF_CORE_READ(skb, transport_header);
	struct procnet_socket *socket;
	struct seen seen;
	__be16 ports[2] = {};
	__u8 version = 0;
	__u64 user;

	if (length < 0 || (!length && BPF_CORE_READ(skb, users.refs.counter) > 1))
		return 0;
	if (is_of_others(sk) || !see(&seen, sk, true))
		return 0;
	bpf_probe_read_kernel(&version, 1, network);
	if (version >> 4 == 4) {
		struct ip4_header ip = {};

		bpf_probe_read_kernel(&ip, sizeof(ip), network);
		set_ipv4(seen.tuple.local_address, ip.destination);
		set_ipv4(seen.tuple.remote_address, ip.source);
	} else {
		struct ip6_header ip = {};

		bpf_probe_read_kernel(&ip, sizeof(ip), network);
		__builtin_memcpy(seen.tuple.local_address, ip.destination, 16);
		__builtin_memcpy(seen.tuple.remote_address, ip.source, 16);
	}
	bpf_probe_read_kernel(&ports, sizeof(ports), transport);
	seen.tuple.remote_port = bpf_ntohs(ports[0]);
	seen.tuple.local_port = bpf_ntohs(ports[1]);
	user = current_user();
	socket = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return 0;
	note(socket, &seen);
	tell(sk, socket, &seen, user, PROCNET_RECEIVE, NULL);
	socket->user = user;
	return 0;
}

/* Frames that a process has made itself -----------------------------------------------------------*/

#define INJECTION_NS 10000000 /* procnet/ledger/owners.py believes an event for as long */
#define VLAN_TAGS 2

/* When a process last sent such a frame. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct procnet_use);
	__type(value, __u64);
} injected SEC(".maps");

/*
 * A scanner makes a five-tuple for each frame: told one by one, they would drive everybody else's
 * events out of the ring. What is beyond this has no owner, and shows as such.
 */
#define INJECTIONS_AT_ONCE 512

struct procnet_burst {
	__u64 since_ns;
	__u64 events;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct procnet_burst);
} burst SEC(".maps");

static __always_inline bool is_flood(__u64 now_ns)
{
	__u32 first = 0;
	struct procnet_burst *of_cpu = bpf_map_lookup_elem(&burst, &first);

	if (!of_cpu)
		return true;
	if (now_ns - of_cpu->since_ns >= INJECTION_NS) {
		of_cpu->since_ns = now_ns;
		of_cpu->events = 0;
	}
	return of_cpu->events++ >= INJECTIONS_AT_ONCE;
}

struct frame {
	unsigned char *at;
	__u32 bytes; /* of it in one piece; the rest is in pages that cannot be read here */
};

static __always_inline bool read_frame(struct frame *frame, __u32 at, void *to, __u32 size)
{
	return at + size <= frame->bytes && !bpf_probe_read_kernel(to, size, frame->at + at);
}

static __always_inline bool read_frame_ports(struct frame *frame, __u32 at,
					     struct procnet_tuple *tuple)
{
	__be16 words[4] = {};

	if (is_icmp(tuple->protocol)) {
		/* One that is cut short has no id. */
		if (read_frame(frame, at, words, sizeof(words)) &&
		    is_echo(tuple->protocol, *(__u8 *)words))
			tuple->local_port = tuple->remote_port = bpf_ntohs(words[2]);
		return true;
	}
	if (!has_ports(tuple->protocol))
		return true;
	if (!read_frame(frame, at, words, 4))
		return false;
	tuple->local_port = bpf_ntohs(words[0]);
	tuple->remote_port = bpf_ntohs(words[1]);
	return true;
}

/* False for a later fragment too: its ports were in the first one. */
static __always_inline bool read_frame_tuple(struct frame *frame, __u16 kind,
					     struct procnet_tuple *tuple)
{
	if (kind == ETH_P_IP) {
		struct ip4_header ip = {};

		if (!read_frame(frame, 0, &ip, sizeof(ip)) || ip.fragment & bpf_htons(0x1fff))
			return false;
		set_ipv4(tuple->local_address, ip.source);
		set_ipv4(tuple->remote_address, ip.destination);
		tuple->protocol = ip.protocol;
		return read_frame_ports(frame, (ip.version_and_words & 15) * 4, tuple);
	}
	if (kind == ETH_P_IPV6) {
		struct ip6_header ip = {};

		if (!read_frame(frame, 0, &ip, sizeof(ip)))
			return false;
		__builtin_memcpy(tuple->local_address, ip.source, 16);
		__builtin_memcpy(tuple->remote_address, ip.destination, 16);
		tuple->protocol = ip.next;
		return read_frame_ports(frame, sizeof(ip), tuple);
	}
	return false;
}

/*
 * Every packet of the host comes by, before the taps, and nearly all leave at the first test: here
 * are those of AF_PACKET sockets, in the call of their sender. Their tuple need not be that of any
 * socket, so that nothing is concluded for longer than INJECTION_NS.
 */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(on_queue, struct sk_buff *skb)
{
	struct sock *sk = skb->sk;
	struct procnet_use use = {};
	struct seen seen = {};
	struct frame frame;
	__u64 now_ns, *last_ns;
	__u16 kind, tag[2];

	if (!sk || sk->__sk_common.skc_family != AF_PACKET)
		return 0;
	frame.at = skb->head + skb->network_header;
	frame.bytes = skb->len - skb->data_len;
	if (frame.at < skb->data || frame.at - skb->data > frame.bytes)
		return 0;
	frame.bytes -= frame.at - skb->data;
	kind = bpf_ntohs(skb->protocol);
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (kind != ETH_P_8021Q && kind != ETH_P_8021AD)
			break;
		if (!read_frame(&frame, 0, tag, sizeof(tag)))
			return 0;
		kind = bpf_ntohs(tag[1]);
		frame.at += sizeof(tag);
		frame.bytes -= sizeof(tag);
	}
	if (!read_frame_tuple(&frame, kind, &seen.tuple))
		return 0;
	seen.inode = socket_inode(sk, false);
	seen.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (is_elsewhere(seen.netns))
		return 0;
	use.socket = seen.inode ^ current_user();
	use.tuple = seen.tuple;
	now_ns = bpf_ktime_get_boot_ns();
	last_ns = bpf_map_lookup_elem(&injected, &use);
	if ((last_ns && now_ns - *last_ns < INJECTION_NS) || is_flood(now_ns))
		return 0;
	if (submit(&seen, PROCNET_INJECT))
		bpf_map_update_elem(&injected, &use, &now_ns, BPF_ANY);
	return 0;
}

/* The end, and the beginning --------------------------------------------------------------------*/

/*
 * The last holder closes; the socket still has its tuple. Told every time that there is one. A
 * connection that nobody has used is its acceptor's: only accept() gives it a file to close.
 */
SEC("cgroup/sock_release")
int on_release(struct bpf_sock *ctx)
{
	struct sock *sk = (struct sock *)ctx;
	__u32 what = PROCNET_CLOSE;
	struct seen seen;

	/* A connection goes on without its process. */
	if (ctx->type != SOCK_STREAM)
		end_counters(ctx);
	if (!see(&seen, sk, false) || (seen.type != SOCK_RAW && !seen.tuple.local_port))
		return 1;
	if (seen.protocol == IPPROTO_TCP && seen.tuple.remote_port) {
		struct procnet_connection *connection =
			connection_of(ctx);

		if (!connection) {
			submit(&seen, PROCNET_ACCEPT | AND_CLOSE);
			return 1;
		}
		connection->is_closing = true;
	}
	if (ctx->type != SOCK_STREAM && has_below(sk)) {
		note_closed(sk, &seen);
		what |= SHARED;
	}
	submit(&seen, what);
	return 1;
}

static __always_inline void note_older(struct sock *sk)
{
	struct procnet_connection *connection = make_connection(sk);

	if (connection)
		connection->is_older = true;
}

/*
 * Every open socket with everybody who has it open. Notes what the hooks would have, where they
 * were not there yet, and never over what they have.
 */
SEC("iter/task_file")
int on_open_file(struct bpf_iter__task_file *ctx)
{
	struct procnet_open_socket row = {};
	struct procnet_socket *socket;
	struct socket *of_file;
	struct sock *sk;
	struct file *file = ctx->file;
	struct task_struct *task = ctx->task;
	struct seen seen;

	if (!file || !task)
		return 0;
	of_file = bpf_sock_from_file(file);
	if (!of_file)
		return 0;
	sk = of_file->sk;
	if (!sk || !see(&seen, sk, true))
		return 0;
	if (is_elsewhere(seen.netns))
		return 0;
	if (seen.protocol == IPPROTO_TCP) {
		/* A listener has nothing to tell. */
		if (seen.tuple.remote_port && !connection_of(sk))
			note_older(sk);
		socket = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	} else {
		socket = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (socket && !socket->id)
			note(socket, &seen);
	}
	if (socket)
		row.born_ns = socket->born_ns;
	row.tuple = seen.tuple;
	row.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	/* Over, and in no table of the kernel's any more: another one may have its tuple. */
	if (row.tuple.protocol == IPPROTO_TCP && row.state == TCP_CLOSE && row.tuple.remote_port)
		return 0;
	row.family = BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET ? 4 : 6;
	/* Bound to a group it is given what is for the group; see() has made a wildcard of it. */
	if (row.family == 4)
		set_ipv4(row.tuple.local_address, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
	else
		BPF_CORE_READ_INTO(&row.tuple.local_address, sk, __sk_common.skc_v6_rcv_saddr);
	row.inode = seen.inode;
	row.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	row.tgid = task->tgid;
	row.netns = seen.netns;
	row.uid = BPF_CORE_READ(sk, sk_uid.val);
	row.type = seen.type;
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
