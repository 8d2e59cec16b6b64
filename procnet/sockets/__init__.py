"""Who, by looking: the kernel's socket tables and the processes that hold them."""
