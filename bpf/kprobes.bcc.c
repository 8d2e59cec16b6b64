// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Whose socket is it? kprobes for kernels without BTF, compiled by BCC against the headers of the
 * running kernel. Events only: a record leaves when a (socket, five-tuple) has a new user, so that
 * what a call costs is a lookup. README.md has the table of hooks.
 *
 * Every hook runs in process context: `current` is the actor, or a kernel thread (flagged).
 * Needs 5.8: ring buffer (457f44363a88), bpf_ktime_get_boot_ns (71d19214776e), and with them
 * task->start_boottime (5.5, cf25e24db61c) and a plain sk_protocol (5.6, bf9765145b85).
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/kernfs.h>
#include <linux/mount.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <linux/socket.h>
#include <linux/udp.h>
#include <net/inet_sock.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include <linux/version.h>

#include "addresses.h"
#include "procnet.h"

/* The beginning of what fs/mount.h has, which no package of headers has; the same since 3.13. */
struct mount {
	struct hlist_node mnt_hash;
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

#define PROCNET_PART static __always_inline
#define PROCNET_OFFSET offsetof
/*
 * With something to do in it, the turn is a block that ends with its jump. An empty one falls into
 * the head of the loop, which is a back edge that check_cfg() refuses in 6.1.
 */
#define PROCNET_WALK(step, walk)                                                                   \
	for (u32 i = 0; i < PROCNET_DEPTH && !step(i, &(walk)); i++)                               \
		asm volatile("" ::: "memory");

static __always_inline struct kernfs_node *procnet_parent(struct kernfs_node *node)
{
	struct kernfs_node *parent = NULL;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0) /* 633488947ef6 */
	bpf_probe_read_kernel(&parent, sizeof(parent), (void *)&node->__parent);
#else
	bpf_probe_read_kernel(&parent, sizeof(parent), &node->parent);
#endif
	return parent;
}

#include "process.h"

/* 4 MiB of events of 120 bytes: 34,000 of them between two reads; and of 1,600 processes. */
#define RING_PAGES 1024
#define USERS 65536
#define KNOWN 4096 /* a power of two */

/* What an event stands for. The inode number is unique in all namespaces: sockfs is one. */
struct procnet_use {
	u64 socket;
	struct procnet_tuple tuple;
};

struct procnet_user {
	u64 start_ns;
	u64 tgid;
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_TABLE("lru_hash", struct procnet_use, struct procnet_user, users, USERS);

/*
 * The users of a TCP connection, as digests, 0 for nobody. A direction that nobody has used yet is
 * the other one's user's. One that is not here may have users that we do not know.
 */
struct procnet_connection {
	u64 sender;
	u64 receiver;
	u8 is_opened; /* by the sender, who has sent nothing yet */
	u8 is_older;  /* than we are, or forgotten */
	u8 is_shared; /* the sender's bytes leave mixed with another's */
	u8 pad[5];
};

BPF_TABLE("lru_hash", u64, struct procnet_connection, connections, USERS);
BPF_RINGBUF_OUTPUT(processes, RING_PAGES);
/* What found a ring full: events, processes. User space maps it. */
BPF_F_TABLE("array", u32, u64, lost, 2, BPF_F_MMAPABLE);
/*
 * Processes that were told, each in the place that its digest says. Two that share one are told
 * again by turns, which does no harm.
 */
BPF_ARRAY(known, u64, KNOWN);

/* The few fields of a socket that we want, read once. */
struct procnet_sock {
	struct sock *sk;
	u64 inode;
	u16 type;
	u16 protocol;
	u16 local_port;
	u16 remote_port;
	u16 family;
	__be32 local4;
	__be32 remote4;
};

#define GET(to, from) bpf_probe_read_kernel(&(to), sizeof(to), from)

/* The inode in socket:[...] of /proc/PID/fd; 0 while the socket has no file (not yet accepted). */
static inline u64 socket_inode(struct sock *sk)
{
	struct socket *socket = NULL;
	unsigned long inode = 0;

	GET(socket, &sk->sk_socket);
	if (!socket)
		return 0;
	GET(inode, (void *)socket - offsetof(struct socket_alloc, socket) +
			    offsetof(struct socket_alloc, vfs_inode) + offsetof(struct inode, i_ino));
	return inode;
}

static inline bool read_sock(struct procnet_sock *to, struct sock *sk)
{
	__be16 local_port = 0, remote_port = 0;

	to->sk = sk;
	GET(to->family, &sk->__sk_common.skc_family);
	if (to->family != AF_INET && to->family != AF_INET6)
		return false;
	GET(to->type, &sk->sk_type);
	GET(to->protocol, &sk->sk_protocol);
	/* Not skc_num: it is 0 again when a reset has closed the connection (__inet_put_port). */
	GET(local_port, &((struct inet_sock *)sk)->inet_sport);
	GET(remote_port, &sk->__sk_common.skc_dport);
	to->local_port = bpf_ntohs(local_port);
	to->remote_port = bpf_ntohs(remote_port);
	GET(to->local4, &sk->__sk_common.skc_rcv_saddr);
	GET(to->remote4, &sk->__sk_common.skc_daddr);
	to->inode = socket_inode(sk);
	return true;
}

static inline bool is_ping(const struct procnet_sock *sock)
{
	return sock->type == SOCK_DGRAM &&
	       (sock->protocol == IPPROTO_ICMP || sock->protocol == IPPROTO_ICMPV6);
}

/* The socket's own idea of its tuple, as an IPv4 socket would say it or as an IPv6 one. */
static inline void own_tuple(struct procnet_tuple *to, const struct procnet_sock *sock, bool ipv4)
{
	__builtin_memset(to, 0, sizeof(*to));
	to->protocol = sock->protocol;
	if (ipv4) {
		set_ipv4(to->local_address, sock->local4);
		set_ipv4(to->remote_address, sock->remote4);
	} else {
		GET(to->local_address, &sock->sk->__sk_common.skc_v6_rcv_saddr);
		GET(to->remote_address, &sock->sk->__sk_common.skc_v6_daddr);
	}
	/* The port of a raw socket is its protocol (inet_create). */
	if (sock->type != SOCK_RAW) {
		to->local_port = sock->local_port;
		to->remote_port = sock->remote_port;
	}
	/* The kernel never sends from the group that a socket is bound to. */
	if (to->local_address[0] == 0xff)
		__builtin_memset(to->local_address, 0, 16);
	else if (is_mapped(to->local_address) && (to->local_address[12] & 0xf0) == 0xe0)
		set_ipv4(to->local_address, 0);
}

/*
 * Without a peer neither address nor port: tcp_disconnect() after a refused connect leaves the
 * address behind. An ICMP id is both ports, once there is a peer.
 */
static inline void settle_peer(struct procnet_tuple *tuple, const struct procnet_sock *sock)
{
	bool has_port = sock->type != SOCK_RAW && !is_ping(sock);

	if (is_any(tuple->remote_address) || (has_port && !tuple->remote_port)) {
		__builtin_memset(tuple->remote_address, 0, 16);
		tuple->remote_port = 0;
	} else if (is_ping(sock)) {
		tuple->remote_port = tuple->local_port;
	}
}

static inline void fill_event(struct procnet_owner_event *event, const struct procnet_sock *sock,
			      const struct procnet_tuple *tuple, u32 what)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = NULL;
	struct net *net = NULL;
	u64 ids = bpf_get_current_pid_tgid();
	unsigned int flags = 0;

	__builtin_memset(event, 0, sizeof(*event));
	GET(leader, &task->group_leader);
	GET(flags, &task->flags);
	GET(net, &sock->sk->__sk_common.skc_net);
	event->layout = PROCNET_LAYOUT;
	event->kind = what;
	event->flags = (flags & PF_KTHREAD ? PROCNET_FLAG_KERNEL : 0) | what >> 8;
	GET(event->netns, &net->ns.inum);
	event->time_ns = bpf_ktime_get_boot_ns();
	GET(event->start_ns, &leader->start_boottime);
	event->inode = sock->inode;
	event->cgroup_id = bpf_get_current_cgroup_id();
	event->tgid = ids >> 32;
	event->uid = bpf_get_current_uid_gid();
	__builtin_memcpy(&event->tuple, tuple, sizeof(*tuple));
	GET(event->comm, &leader->comm);
}

static inline void count_loss(u32 which)
{
	u64 *count = lost.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

#define LOST_EVENTS 0
#define LOST_PROCESSES 1

static inline bool tell_process(struct task_struct *task)
{
	struct procnet_process *process = processes.ringbuf_reserve(sizeof(*process));

	if (!process) {
		count_loss(LOST_PROCESSES);
		return false;
	}
	procnet_describe(process, task);
	processes.ringbuf_submit(process, 0);
	return true;
}

/* (pid, start) as one word, so that it is read and written in one piece. */
static inline u64 digest_of(struct task_struct *task)
{
	struct task_struct *leader = NULL;
	u64 start_ns = 0;

	GET(leader, &task->group_leader);
	GET(start_ns, &leader->start_boottime);
	/* 2^64 / the golden ratio */
	return (start_ns * 0x9e3779b97f4a7c15ULL + (bpf_get_current_pid_tgid() >> 32)) | 1;
}

static inline u64 *place_of(u64 user)
{
	u32 place = (user >> 32) % KNOWN;

	return known.lookup(&place);
}

/* Before its first event, so that whoever has read the event finds the process. */
static inline void introduce(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u64 user = digest_of(task), *place = place_of(user);
	unsigned int flags = 0;

	GET(flags, &task->flags);
	if (!(flags & PF_KTHREAD) && place && *place != user && tell_process(task))
		*place = user;
}

/* Who is known has another program now; its arguments are in place. */
int on_finalize_exec(struct pt_regs *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u64 user = digest_of(task), *place = place_of(user);

	if (place && *place == user)
		tell_process(task);
	return 0;
}

/* Beside its kind, the flags of an event. */
#define SENDS (PROCNET_FLAG_SENDS << 8)
#define RECEIVES (PROCNET_FLAG_RECEIVES << 8)
#define SHARED (PROCNET_FLAG_SHARED << 8)

/* False if the ring is full, which is counted. */
static inline bool submit(const struct procnet_sock *sock, const struct procnet_tuple *tuple,
			  u32 what)
{
	struct procnet_owner_event *event;

	introduce();
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count_loss(LOST_EVENTS);
		return false;
	}
	fill_event(event, sock, tuple, what);
	events.ringbuf_submit(event, 0);
	return true;
}

static inline void set_use(struct procnet_use *use, const struct procnet_sock *sock,
			   const struct procnet_tuple *tuple)
{
	use->socket = sock->inode ? sock->inode : (u64)sock->sk;
	__builtin_memcpy(&use->tuple, tuple, sizeof(*tuple));
}

/* Tells user space, unless the same process was the last to use the same tuple of the socket. */
static inline int tell(const struct procnet_sock *sock, struct procnet_tuple *tuple, u32 what)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = NULL;
	struct procnet_user *last, user = {.tgid = bpf_get_current_pid_tgid() >> 32};
	struct procnet_use use;

	settle_peer(tuple, sock);
	set_use(&use, sock, tuple);
	GET(leader, &task->group_leader);
	GET(user.start_ns, &leader->start_boottime);
	last = users.lookup(&use);
	if (last && last->tgid == user.tgid && last->start_ns == user.start_ns)
		return 0;
	/* A lost event is told again at the next call. */
	if (submit(sock, tuple, what))
		users.update(&use, &user);
	return 0;
}

static inline bool read_connection(struct procnet_sock *to, struct procnet_tuple *tuple,
				   struct sock *sk)
{
	if (!read_sock(to, sk) || !to->remote_port)
		return false;
	own_tuple(tuple, to, to->family == AF_INET);
	settle_peer(tuple, to);
	return true;
}

/* TCP -------------------------------------------------------------------------------------------*/

static inline u64 acting_user(void)
{
	return digest_of((struct task_struct *)bpf_get_current_task());
}

/* The port is chosen, the tuple complete, the SYN not yet sent. */
int on_tcp_connect(struct pt_regs *ctx, struct sock *sk)
{
	struct procnet_connection opened = {.sender = acting_user(), .is_opened = 1};
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	u64 id = (u64)sk;

	if (read_connection(&sock, &tuple, sk) && submit(&sock, &tuple, PROCNET_CONNECT))
		connections.update(&id, &opened);
	return 0;
}

/*
 * Not noted as a use: accept() says who may use the connection, and the first to do so, be it the
 * acceptor or a child of it, is told as well.
 */
static inline int tell_accepted(struct sock *sk)
{
	struct procnet_connection accepted = {};
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	u64 id = (u64)sk;

	if (!read_connection(&sock, &tuple, sk))
		return 0;
	connections.update(&id, &accepted);
	submit(&sock, &tuple, PROCNET_ACCEPT);
	return 0;
}

/*
 * accept() gives the child its file (sock_graft). Instead of a kretprobe on inet_csk_accept: an
 * entry probe has no slots that blocked accepters could use up, sees those that blocked before we
 * came, and the inode is known. AF_UNIX and others come here too; read_sock() refuses them.
 */
int on_sock_graft(struct pt_regs *ctx, struct sock *sk)
{
	return tell_accepted(sk);
}

/* For a kernel without CONFIG_SECURITY_NETWORK. The child has no inode yet. */
int on_csk_accept_return(struct pt_regs *ctx)
{
	struct sock *sk = (struct sock *)PT_REGS_RC(ctx);

	return sk ? tell_accepted(sk) : 0;
}

static inline struct procnet_connection get_connection(u64 id)
{
	struct procnet_connection *known = connections.lookup(&id);
	struct procnet_connection older = {.is_older = 1};

	return known ? *known : older;
}

/* Has nobody sent by it? */
static inline bool is_unsent(const struct procnet_connection *connection)
{
	return connection->is_opened || (!connection->sender && !connection->is_older);
}

/*
 * Are bytes of others in the queue, or about to be? Nobody tells when they have left: the two share
 * what is sent, until the new sender calls again and finds nothing of the other's.
 */
static inline bool is_queued_before(struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	u32 written = 0, sent = 0;
	int waiting = 0, owned = 0;

	GET(written, &tcp->write_seq);
	GET(sent, &tcp->snd_nxt);
	GET(waiting, &sk->sk_write_pending);
	GET(owned, &sk->sk_lock.owned);
	return (s32)(written - sent) > 0 || waiting || owned;
}

static inline int send_tcp(struct sock *sk)
{
	u64 id = (u64)sk, user = acting_user();
	struct procnet_connection connection = get_connection(id);
	u32 what = PROCNET_SEND | SENDS;
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	bool is_first = is_unsent(&connection), is_shared, is_told;

	if (connection.sender == user && !connection.is_opened && !connection.is_shared)
		return 0;
	is_shared = !is_first && is_queued_before(sk);
	is_told = connection.is_opened ? connection.sender == user :
		  is_first		? connection.receiver == user :
					  is_shared && connection.is_shared && connection.sender == user;
	if (!connection.receiver && !connection.is_older)
		what |= RECEIVES;
	if (!is_told && (!read_connection(&sock, &tuple, sk) ||
			 !submit(&sock, &tuple, what | (is_shared ? SHARED : 0))))
		return 0;
	connection.sender = user;
	connection.is_opened = 0;
	connection.is_shared = is_shared;
	connections.update(&id, &connection);
	return 0;
}

int on_tcp_sendmsg(struct pt_regs *ctx, struct sock *sk)
{
	return send_tcp(sk);
}

/* sendfile() and splice(), until they became tcp_sendmsg() (6.5, dc97391e6610). */
int on_tcp_sendpage(struct pt_regs *ctx, struct sock *sk)
{
	return send_tcp(sk);
}

/*
 * Data was taken, by recv() or splice(). A kernel user of the socket takes it in softirq, where the
 * socket is not locked by a process and `current` is anybody. What the sender has left in the queue
 * is still its own. The first taker is told even if it is the sender: until then nobody knows whose
 * it is what comes in.
 */
int on_tcp_receive(struct pt_regs *ctx, struct sock *sk)
{
	u64 id = (u64)sk, user = acting_user();
	struct procnet_connection connection = get_connection(id);
	u32 what = PROCNET_RECEIVE | RECEIVES | (is_unsent(&connection) ? SENDS : 0);
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	int owned = 0;

	if (connection.receiver == user)
		return 0;
	GET(owned, &sk->sk_lock.owned);
	if (!owned || !read_connection(&sock, &tuple, sk) || !submit(&sock, &tuple, what))
		return 0;
	connection.receiver = user;
	if (connection.is_opened)
		connection.sender = connection.is_opened = 0;
	connections.update(&id, &connection);
	return 0;
}

/* Datagrams going out ---------------------------------------------------------------------------*/

/* Where to, if the caller said so; the kernel has copied it (move_addr_to_kernel). */
static inline void *message_name(struct msghdr *message)
{
	void *name = NULL;

	GET(name, &message->msg_name);
	return name;
}

/* Also an AF_INET6 socket that sends to a mapped address: udpv6_sendmsg() calls udp_sendmsg(). */
static inline int tell_send4(struct sock *sk, struct msghdr *message)
{
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	struct sockaddr_in to = {};
	void *name = message_name(message);

	if (!read_sock(&sock, sk))
		return 0;
	own_tuple(&tuple, &sock, true);
	if (name) {
		GET(to, name);
		set_ipv4(tuple.remote_address, to.sin_addr.s_addr);
		tuple.remote_port = sock.type == SOCK_RAW ? 0 : bpf_ntohs(to.sin_port);
	}
	return tell(&sock, &tuple, PROCNET_SEND);
}

static inline int tell_send6(struct sock *sk, struct msghdr *message)
{
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	struct sockaddr_in6 to = {};
	void *name = message_name(message);

	if (!read_sock(&sock, sk))
		return 0;
	own_tuple(&tuple, &sock, false);
	if (name) {
		GET(to, name);
		if (to.sin6_family == AF_INET)
			return 0; /* udp_sendmsg() is next and tells it */
		__builtin_memcpy(tuple.remote_address, &to.sin6_addr, 16);
		/* :: as a destination is ::1 (udpv6_sendmsg, rawv6_sendmsg) */
		if (is_any(tuple.remote_address))
			tuple.remote_address[15] = 1;
		tuple.remote_port = sock.type == SOCK_RAW ? 0 : bpf_ntohs(to.sin6_port);
	}
	if (is_mapped(tuple.remote_address))
		return 0; /* as above */
	return tell(&sock, &tuple, PROCNET_SEND);
}

int on_udp_sendmsg(struct pt_regs *ctx, struct sock *sk, struct msghdr *message)
{
	return tell_send4(sk, message);
}

int on_udpv6_sendmsg(struct pt_regs *ctx, struct sock *sk, struct msghdr *message)
{
	return tell_send6(sk, message);
}

int on_raw_sendmsg(struct pt_regs *ctx, struct sock *sk, struct msghdr *message)
{
	return tell_send4(sk, message);
}

int on_rawv6_sendmsg(struct pt_regs *ctx, struct sock *sk, struct msghdr *message)
{
	return tell_send6(sk, message);
}

int on_ping_v4_sendmsg(struct pt_regs *ctx, struct sock *sk, struct msghdr *message)
{
	return tell_send4(sk, message);
}

int on_ping_v6_sendmsg(struct pt_regs *ctx, struct sock *sk, struct msghdr *message)
{
	return tell_send6(sk, message);
}

/* Datagrams coming in ---------------------------------------------------------------------------*/

struct procnet_headers {
	unsigned char *network;
	unsigned char *transport;
};

static inline void read_headers(struct procnet_headers *to, struct sk_buff *skb)
{
	unsigned char *head = NULL;
	u16 network = 0, transport = 0;

	GET(head, &skb->head);
	GET(network, &skb->network_header);
	GET(transport, &skb->transport_header);
	to->network = head + network;
	to->transport = head + transport;
}

/* The packet came from the remote end to the local one. */
static inline bool read_addresses(struct procnet_tuple *to, unsigned char *network)
{
	struct iphdr ip4 = {};
	struct ipv6hdr ip6 = {};

	GET(ip4, network);
	if (ip4.version == 4) {
		set_ipv4(to->local_address, ip4.daddr);
		set_ipv4(to->remote_address, ip4.saddr);
		return true;
	}
	if (ip4.version != 6)
		return false;
	GET(ip6, network);
	__builtin_memcpy(to->local_address, &ip6.daddr, 16);
	__builtin_memcpy(to->remote_address, &ip6.saddr, 16);
	return true;
}

/* While the queue keeps a packet, what recvmsg() holds is a second reference (MSG_PEEK). */
static inline bool is_queued(struct sk_buff *skb)
{
	refcount_t references = {};

	GET(references, &skb->users);
	return references.refs.counter > 1;
}

/*
 * The taker of a datagram, with the tuple that the datagram has. Who only peeks has the negative of
 * its length (627d2d6b5500); of an empty one the references tell, unless another takes it meanwhile.
 */
int on_skb_consume_udp(struct pt_regs *ctx, struct sock *sk, struct sk_buff *skb, int length)
{
	struct procnet_sock sock = {};
	struct procnet_tuple tuple = {};
	struct procnet_headers headers;
	struct udphdr udp = {};

	if (length < 0 || (!length && is_queued(skb)) || !read_sock(&sock, sk))
		return 0;
	read_headers(&headers, skb);
	if (!read_addresses(&tuple, headers.network))
		return 0;
	GET(udp, headers.transport);
	tuple.protocol = sock.protocol;
	tuple.local_port = bpf_ntohs(udp.dest);
	tuple.remote_port = bpf_ntohs(udp.source);
	return tell(&sock, &tuple, PROCNET_RECEIVE);
}

/*
 * raw_recvmsg(), rawv6_recvmsg() and ping_recvmsg() end here, with the packet. A raw ICMP socket
 * gets copies of what others asked for, so it claims no id (ports stay 0); a ping socket only gets
 * its own.
 */
int on_skb_free_datagram(struct pt_regs *ctx, struct sock *sk, struct sk_buff *skb)
{
	struct procnet_sock sock = {};
	struct procnet_tuple tuple = {};
	struct procnet_headers headers;

	if (is_queued(skb) || !read_sock(&sock, sk) || (sock.type != SOCK_RAW && !is_ping(&sock)))
		return 0;
	read_headers(&headers, skb);
	if (!read_addresses(&tuple, headers.network))
		return 0;
	tuple.protocol = sock.protocol;
	if (is_ping(&sock))
		tuple.local_port = sock.local_port;
	return tell(&sock, &tuple, PROCNET_RECEIVE);
}

/* The end --------------------------------------------------------------------------------------*/

/*
 * The last holder closes; the socket still has its tuple. Told every time. inet6_release() comes
 * here too. A close that the kernel put off (fput from a kernel thread) is flagged as the kernel's.
 */
int on_inet_release(struct pt_regs *ctx, struct socket *socket)
{
	struct procnet_sock sock = {};
	struct procnet_tuple tuple;
	struct procnet_use use;
	struct sock *sk = NULL;
	u64 id;

	GET(sk, &socket->sk);
	if (!sk || !read_sock(&sock, sk) || (sock.type != SOCK_RAW && !sock.local_port))
		return 0;
	own_tuple(&tuple, &sock, sock.family == AF_INET);
	settle_peer(&tuple, &sock);
	if (sock.protocol == IPPROTO_TCP) {
		id = (u64)sk;
		connections.delete(&id);
	} else {
		set_use(&use, &sock, &tuple);
		users.delete(&use);
	}
	submit(&sock, &tuple, PROCNET_CLOSE);
	return 0;
}
