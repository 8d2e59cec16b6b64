"""Who, at the moment it happens: the user-space side of the BPF programs in bpf/."""
