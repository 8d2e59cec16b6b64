/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The few fields of the kernel's structures that we read. CO-RE (preserve_access_index): libbpf
 * puts in the offsets and sizes of the kernel that runs, so members stand here in no order, others
 * are left out, and a type here only says what it was when it was written down.
 *
 * Names are the kernel's. Where a field has changed between kernels there is a getter, with the
 * commit that changed it; where none stands here, the field has been the same since 5.8 at least.
 */
#ifndef PROCNET_KERNEL_H
#define PROCNET_KERNEL_H

#include <linux/types.h>

#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* namespaces */

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

/* files; sockfs keeps a socket and its inode in one object */

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount { /* fs/mount.h */
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct inode *f_inode;
	struct path f_path;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct socket {
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

/* processes */

typedef struct {
	unsigned int val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct kernfs_node {
	__u64 id;
	const char *name;
	struct kernfs_node *parent;
};

struct kernfs_node___6_15 { /* 633488947ef6 */
	struct kernfs_node *__parent;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
};

struct task_struct {
	unsigned int flags;
	unsigned int pid; /* pid_t, and never negative here */
	unsigned int tgid;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct mm_struct *mm;
	__u64 start_boottime;
	const struct cred *cred;
	char comm[16];
	struct files_struct *files;
	struct css_set *cgroups;
};

/* sockets */

struct in6_addr {
	__u32 s6_words[4]; /* the kernel has a union there; only its address and size are used */
};

typedef struct {
	int counter;
} atomic_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

/* int in all of them, but the type's name is not in BTF as that of a struct */
typedef struct {
	int owned;
} socket_lock_t;

struct sk_buff_head {
	__u32 qlen;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	socket_lock_t sk_lock;
	refcount_t sk_wmem_alloc;
	int sk_write_pending; /* senders that wait for room, without the lock */
	__u16 sk_type;     /* a plain member since 5.6, bf9765145b85 */
	__u16 sk_protocol; /* the same */
	struct socket *sk_socket;
	kuid_t sk_uid;
};

struct inet_sock {
	__be16 inet_sport;
};

struct udp_sock {
	struct sk_buff_head reader_queue; /* 4.13, 2276f58ac589 */
};

struct tcp_sock {
	__u32 write_seq;
	__u32 snd_nxt;
	__u32 snd_una;
};

struct sk_buff {
	struct sock *sk;
	refcount_t users;
	unsigned char *head;
	unsigned char *data;
	unsigned int len;
	unsigned int data_len;
	unsigned int truesize;
	__be16 protocol;
	__u16 network_header;
	__u16 transport_header;
};

/* iterators */

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

#define PROCNET_PF_KTHREAD 0x00200000 /* include/linux/sched.h */
#define PROCNET_S_IFMT 00170000
#define PROCNET_S_IFSOCK 0140000

#endif
