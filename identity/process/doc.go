// SPDX-License-Identifier: Apache-2.0

// Package process finds the process behind a filesystem request or a socket,
// in a way that it cannot be confused with another, and remembers for a short
// while which SPIFFE IDs a broker gave it.
//
// A number is not a process: ids are reused, and one process may become another
// program under the same id. So a Process is held by two descriptors, a pidfd
// and its folder in /proc, which keep meaning the same process whatever happens
// to the number; and what it is at one moment is its Generation: which process,
// running which file, with which ids and groups, in which cgroup.
//
// # Guarantees
//
//   - IDs are returned only for a process whose Generation was the same before
//     and after the broker was asked, and that was alive, and had not executed
//     anything in between.
//   - A remembered answer is used only while the process lives, has the user
//     and group ids and the cgroup it had, and runs the same file (device,
//     inode, change time), and only for Config.TTL.
//   - An answer takes at most Config.Deadline, also for those who wait for the
//     same broker call, and ErrUnavailable is what remains.
//   - Every doubt is a refusal: thread 0, kernel threads, the agent itself, ids
//     that have no meaning here, a thread whose ids are not its process's, and a
//     process whose real, effective and filesystem ids differ (a set-uid
//     program acts for somebody else, and is nobody's workload).
//
// # Limits
//
//   - Supplementary groups are looked at when the broker is asked, not for a
//     remembered answer: the kernel has no cheap way to tell them. Changing them
//     takes CAP_SETGID.
//   - A program that executes its own file again is the same generation.
//   - A process whose first thread has exited while others run on has no
//     executable to be seen, and is refused.
//   - The change time of an executable on a network filesystem is the one this
//     node has cached.
//   - The executable's path is for the audit log. It may be gone or replaced.
//
// It needs the host's pid namespace, CAP_SYS_PTRACE to see other users'
// executables, and a /proc without hidepid. Linux 6.13 tells most of it by
// PIDFD_GET_INFO; before that, /proc/<pid>/status is read, which takes longer.
// Socket peers need SO_PEERPIDFD, Linux 6.5.
package process
