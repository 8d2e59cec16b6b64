/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Who the current process is: program, arguments, parent, cgroup. For both families; each has its
 * own struct mount, its own way to the parent of a kernfs_node and to walk before it includes this.
 *
 * Paths are walked without the locks of d_path(): a path that is renamed at that very moment may
 * come out as neither the old nor the new one.
 */
#ifndef PROCNET_PROCESS_H
#define PROCNET_PROCESS_H

#define PROCNET_DEPTH 48 /* components, and mounts between them */

#define PROCNET_READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))

/* What a walk up a tree goes on with; all of it in memory, so that its steps look alike. */
struct procnet_walk {
	struct procnet_process *to;
	struct mount *mount;
	struct dentry *dentry;
	struct kernfs_node *node;
	bool is_whole;
};

static __always_inline bool procnet_append(__u8 *names, __u32 room, __u16 *end, const void *name)
{
	__u32 at = *(volatile __u16 *)end;
	long length;

	if (at > room - PROCNET_NAME_BYTES)
		return false;
	length = bpf_probe_read_kernel_str(names + at, PROCNET_NAME_BYTES, name);
	if (length <= 0)
		return false;
	*(volatile __u16 *)end = at + length;
	return true;
}

/* As d_path() does, to the root of the mount namespace. 1 to end the walk. */
PROCNET_PART long procnet_exe_step(__u32 number, struct procnet_walk *walk)
{
	struct procnet_process *to = walk->to;
	struct dentry *root = NULL, *parent = NULL;
	struct mount *above = NULL;
	const unsigned char *name = NULL;
	bool ends;

	PROCNET_READ(root, walk->mount->mnt.mnt_root);
	PROCNET_READ(parent, walk->dentry->d_parent);
	PROCNET_READ(above, walk->mount->mnt_parent);
	ends = walk->dentry == root || walk->dentry == parent;
	if (walk->dentry == root && above != walk->mount) {
		PROCNET_READ(walk->dentry, walk->mount->mnt_mountpoint);
		walk->mount = above;
		return 0;
	}
	/* What ends with no name yet is in no directory: memfd_create() */
	if (!ends || !to->exe_bytes) {
		PROCNET_READ(name, walk->dentry->d_name.name);
		if (!procnet_append(to->exe, PROCNET_EXE_BYTES, &to->exe_bytes, name))
			return 1;
	}
	walk->dentry = parent;
	walk->is_whole = ends;
	return ends;
}

PROCNET_PART long procnet_cgroup_step(__u32 number, struct procnet_walk *walk)
{
	struct procnet_process *to = walk->to;
	struct kernfs_node *parent = procnet_parent(walk->node);
	const char *name = NULL;

	/* The root's own name, which is empty, makes it another thing than unknown. */
	if (parent || !to->cgroup_bytes) {
		PROCNET_READ(name, walk->node->name);
		if (!procnet_append(to->cgroup, PROCNET_CGROUP_BYTES, &to->cgroup_bytes, name))
			return 1;
	}
	walk->node = parent;
	walk->is_whole = !parent;
	return !parent;
}

/* What the process has overwritten itself, it wanted to be seen. */
static __always_inline __u32 procnet_args(struct procnet_process *to, struct mm_struct *mm)
{
	unsigned long start = 0, end = 0;
	__u32 bytes;

	PROCNET_READ(start, mm->arg_start);
	PROCNET_READ(end, mm->arg_end);
	if (end <= start)
		return 0;
	bytes = end - start > PROCNET_ARGS_BYTES ? PROCNET_ARGS_BYTES : end - start;
	return bpf_probe_read_user(to->args, bytes, (void *)start) ? 0 : bytes;
}

static __always_inline void procnet_describe(struct procnet_process *to, struct task_struct *task)
{
	struct task_struct *leader = NULL, *parent = NULL;
	struct procnet_walk walk = {.to = to};
	const struct cred *cred = NULL;
	struct css_set *cgroups = NULL;
	struct cgroup *cgroup = NULL;
	struct mm_struct *mm = NULL;
	struct vfsmount *mount = NULL;
	struct file *exe = NULL;

	PROCNET_READ(leader, task->group_leader);
	PROCNET_READ(parent, leader->real_parent);
	PROCNET_READ(cred, task->cred);
	PROCNET_READ(cgroups, task->cgroups);
	PROCNET_READ(cgroup, cgroups->dfl_cgrp);
	PROCNET_READ(mm, task->mm);
	to->layout = PROCNET_LAYOUT;
	to->start_ns = to->tgid = to->parent_tgid = to->uid = to->pad = 0;
	to->exe_bytes = to->args_bytes = to->cgroup_bytes = 0;
	PROCNET_READ(to->start_ns, leader->start_boottime);
	PROCNET_READ(to->tgid, task->tgid);
	PROCNET_READ(to->parent_tgid, parent->tgid);
	PROCNET_READ(to->uid, cred->uid);
	PROCNET_READ(to->comm, leader->comm);
	PROCNET_READ(walk.node, cgroup->kn);
	PROCNET_WALK(procnet_cgroup_step, walk);
	if (!walk.is_whole)
		to->cgroup_bytes = 0;
	/* At exit the memory goes first, then the sockets. */
	if (!mm)
		return;
	to->args_bytes = procnet_args(to, mm);
	PROCNET_READ(exe, mm->exe_file);
	PROCNET_READ(walk.dentry, exe->f_path.dentry);
	PROCNET_READ(mount, exe->f_path.mnt);
	if (!walk.dentry || !mount)
		return;
	walk.mount = (void *)mount - PROCNET_OFFSET(struct mount, mnt);
	walk.is_whole = false;
	PROCNET_WALK(procnet_exe_step, walk);
	if (!walk.is_whole)
		to->exe_bytes = 0;
}

#endif
