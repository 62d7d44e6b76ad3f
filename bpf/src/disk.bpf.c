// SPDX-License-Identifier: GPL-2.0
/*
 * Writes of a call that found no space (ENOSPC) or went beyond a quota (EDQUOT), as the kernel answered them.
 *
 * No event of the kernel says so for every file system, but the way out of a system call does. To listen there makes
 * every system call of the host some 80 ns dearer, so this is attached only while a disk is nearly full: bpf/disk.py.
 */
#include "maps.h"
#include <asm/unistd.h>

char LICENSE[] SEC("license") = "GPL";

#define ENOSPC 28
#define EDQUOT 122

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
/* x86 and arm64 keep the number of the system call under different names. */
struct pt_regs___x86 {
	unsigned long orig_ax;
};
struct pt_regs___arm64 {
	int syscallno;
};
#pragma clang attribute pop

/*
 * Only what writes to a file system: inotify_add_watch, epoll_ctl, semget and others answer ENOSPC for reasons of
 * their own, and the key ring answers EDQUOT.
 */
static __always_inline bool writes(long number)
{
	switch (number) {
	case __NR_write:
	case __NR_pwrite64:
	case __NR_writev:
	case __NR_pwritev:
	case __NR_pwritev2:
	case __NR_fallocate:
	case __NR_ftruncate:
	case __NR_truncate:
	case __NR_sendfile:
	case __NR_splice:
	case __NR_copy_file_range:
	case __NR_fsync:
	case __NR_fdatasync:
	case __NR_sync_file_range:
	case __NR_msync:
	case __NR_close:
	case __NR_openat:
	case __NR_openat2:
	case __NR_mkdirat:
	case __NR_mknodat:
	case __NR_linkat:
	case __NR_symlinkat:
	case __NR_renameat2:
	case __NR_setxattr:
	case __NR_fsetxattr:
#ifdef __NR_renameat
	case __NR_renameat:
#endif
#ifdef __NR_open
	case __NR_open:
	case __NR_creat:
	case __NR_mkdir:
	case __NR_mknod:
	case __NR_link:
	case __NR_symlink:
	case __NR_rename:
#endif
		return true;
	}
	return false;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(corral_sys_exit, void *regs, long answer)
{
	struct corral_counters *count;
	long number;
	__u64 id;

	if (answer != -ENOSPC && answer != -EDQUOT)
		return 0;
	id = bpf_get_current_cgroup_id();
	count = bpf_map_lookup_elem(&counters, &id);
	if (!count)
		return 0;
	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax))
		number = BPF_CORE_READ((struct pt_regs___x86 *)regs, orig_ax);
	else
		number = BPF_CORE_READ((struct pt_regs___arm64 *)regs, syscallno);
	if (writes(number))
		__sync_fetch_and_add(&count->no_space, 1);
	return 0;
}
